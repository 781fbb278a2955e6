"""Slots: the versions of each model on this device, and which one is current.

    ROOT/state.sqlite                     SQLite, synchronous=EXTRA
    ROOT/models/MODEL/slots/SHA256/       an unpacked, verified bundle
    ROOT/models/MODEL/slots/.tmp-SHA256/  being staged; removed at start
    ROOT/models/MODEL/current             symlink to slots/SHA256

Rules, which make a power cut at any point leave the old version or the new one:
    * A slot appears by one rename, after all its files and its directory are synced.
    * A switch first commits PENDING{old, new} to the database, then renames the link.
    * The database is the truth; `recover` points the link where the database says.  A damaged one
      is set aside, and the links and the intact slots are the truth once more.
    * Starts are counted only while PENDING: after `MAX_TRIES` of them the old version comes back.
      A committed version is never reverted by power cycles.
    * Two versions are kept: the current one and the one before.  A third, the challenger, is kept
      while it is tried beside the current one; it has no link, and its switch is the database's.
    * What was switched together (a unit: one bundle, or those of a group) is committed together or
      reverted together, each in one transaction; a start that gives up one gives up all.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_agent.update.bundle import unpack
from edge_agent.update.errors import BadBundle, Failed, OnProbation, OverQuota
from edge_agent.update.files import Files
from edge_agent.update.reading import require_intact
from edge_agent.update.rebuild import installed_on_disk
from edge_agent.update.records import (
    Challenger,
    Installed,
    Records,
    Role,
    Switch,
    directory_of,
)
from edge_agent.update.transfer_part import BLOCK_BYTES
from edge_agent.wire.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, ReleaseInfo
from edge_agent.wire.messages import TrialMode

__all__ = ["MAX_TRIES", "Challenger", "Installed", "Reverted", "SlotStore", "Switch"]

log = logging.getLogger("skerry.update")

MAX_TRIES: Final = 3
"""Starts of the agent that a pending version survives before it is taken for a crasher."""


@dataclass(frozen=True, slots=True)
class Reverted:
    """A pending version that `recover` gave up.

    Attributes:
        lost: the model of its unit whose slot is gone; empty when it was started too often.
    """

    abandoned: Installed
    restored: Installed | None
    lost: str = ""


class SlotStore:
    """See the module.  Thread-safe; one process at a time."""

    def __init__(self, root: Path, files: Files | None = None, *, quota_bytes: int = 0) -> None:
        """
        Args:
            quota_bytes: most that all below `root` may take on the disk; 0 is no limit.
        """
        self._root = root
        self._quota_bytes = quota_bytes
        self._files = files or Files()
        self._lock = threading.RLock()
        self._records = Records(root, lambda: installed_on_disk(root))

    def close(self) -> None:
        with self._lock:
            self._records.close()

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def models(self) -> list[str]:
        """Models that have a current version."""
        with self._lock:
            return self._records.models()

    def current(self, model: str) -> Installed | None:
        """What is served, pending or committed."""
        return self._read(model, "current")

    def previous(self, model: str) -> Installed | None:
        """What a revert goes back to."""
        return self._read(model, "previous")

    def challenger(self, model: str) -> Challenger | None:
        """What is tried beside the current version."""
        with self._lock:
            return self._records.challenger(model)

    def challengers(self) -> list[Challenger]:
        """All that are tried, by model."""
        with self._lock:
            return self._records.challengers()

    def slot(self, model: str, sha256: str) -> Path | None:
        """Directory of a staged bundle; None when it is not here."""
        path = self._slots(model) / sha256
        return path if (path / MANIFEST_NAME).is_file() else None

    def require_room(self, needed_bytes: int) -> None:
        """See that `needed_bytes` more fit, before any of them is written.

        Raises:
            OverQuota: not within the quota.
            Failed: "no_space": not on the disk.
        """
        if self._quota_bytes:
            used = sum(
                path.lstat().st_blocks * BLOCK_BYTES
                for path in self._root.rglob("*")
                if path.is_file() and not path.is_symlink()
            )
            if used + needed_bytes > self._quota_bytes:
                raise OverQuota(
                    f"{needed_bytes} bytes are needed, {used} of {self._quota_bytes} are in use"
                )
        free = shutil.disk_usage(self._root).free
        if free < needed_bytes:
            raise Failed(f"{needed_bytes} bytes are needed, {free} are free", "no_space")

    # ── changing ─────────────────────────────────────────────────────────────────────────────────

    def stage(self, bundle: Path, sha256: str, release: ReleaseInfo) -> Path:
        """Unpack a raw bundle into its slot; a slot that is there already is kept.

        Args:
            bundle: the raw bundle file.
            sha256: its signed digest, checked once more on the bytes that are unpacked.
            release: signed; the manifest must be of this model, version and profile.

        Returns:
            The slot's directory.

        Raises:
            BadBundle: see `bundle.unpack`; or the manifest is another release's.
            OSError: the disk refused.
        """
        with self._lock, bundle.open("rb") as raw:
            if hashlib.file_digest(raw, "sha256").hexdigest() != sha256:
                raise BadBundle("the bundle is not the signed one")
            raw.seek(0)
            slots = self._slots(release.model)
            if (existing := self.slot(release.model, sha256)) is not None:
                _require_release(_manifest(existing), release)
                return existing
            temporary = slots / f".tmp-{sha256}"
            self._files.remove_tree(temporary)
            try:
                self._files.make_directory(temporary)
                _require_release(unpack(raw, temporary, self._files), release)
                self._files.sync_directory(temporary)
                self._files.rename(temporary, slots / sha256)
            except Exception:
                # a full disk would stay full until the next start
                self._files.remove_tree(temporary)
                raise
            self._files.sync_directory(slots)
            return slots / sha256

    def tidy(self, model: str | None = None) -> None:
        """Remove slots that nothing names, as a crash may leave them.

        To be called when nothing is wanted that is not installed: a staged slot goes as well.

        Args:
            model: only its slots; None is every model.
        """
        with self._lock:
            for each in self._directories() if model is None else [model]:
                self._collect(each)

    def discard(self, model: str, sha256: str) -> None:
        """Remove a staged bundle that nothing names."""
        with self._lock:
            if sha256 not in self._named(model):
                self._files.remove_tree(self._slots(model) / sha256)

    def drop_damaged(self, model: str, sha256: str) -> None:
        """Remove a slot, current or not, whose files are not what its manifest says."""
        slot = self._slots(model) / sha256
        with self._lock:
            if not slot.exists():
                return
            try:
                require_intact(slot)
            except (BadBundle, OSError) as error:
                log.warning("update.slot_damaged model=%s sha256=%s cause=%s", model, sha256, error)
                self._files.remove_tree(slot)

    def switch(
        self,
        model: str,
        sha256: str,
        release: ReleaseInfo,
        target: str,
        *,
        generation: int = 0,
        rollout: str | None = None,
        probation_s: float = 10.0,
    ) -> Installed:
        """`switch_group` of one bundle.

        Raises:
            BadBundle: it is not staged, or its manifest is another release's.
            OSError: the disk refused; the version before is current again.
        """
        if release.model != model:
            raise BadBundle(f"the release is of {release.model}, not of {model}")
        one = Switch(sha256, release, target, generation, rollout, probation_s)
        return self.switch_group([one])[0]

    def switch_group(self, switches: Sequence[Switch]) -> list[Installed]:
        """Make staged bundles current in one transaction, PENDING until `commit` or `revert`.

        Args:
            switches: one a model, at least one; they are one unit from here on.

        Returns:
            What is current now, in the order of `switches`.

        Raises:
            BadBundle: one is not staged, or its manifest is another release's; nothing changed.
            OnProbation: one is of a pending unit that has other models, which would be torn apart.
            ValueError: two are of one model.
            OSError: the disk refused; the versions before are current again.
        """
        models = [each.release.model for each in switches]
        if not models or len(set(models)) != len(models):
            raise ValueError("a switch takes one bundle a model")
        with self._lock:
            variants = [self._require_staged(each).variant for each in switches]
            for model in models:
                if torn := {each.model for each in self.unit(model)} - set(models):
                    others = ", ".join(sorted(torn))
                    raise OnProbation(f"{model} was switched together with {others}")
            with self._records.transaction():
                for each, variant in zip(switches, variants, strict=True):
                    self._records.insert(each, variant, unit=min(models))
            try:
                for each in switches:
                    self._link(each.release.model, each.sha256)
            except OSError:
                self.revert(models[0])
                raise
            return [self._records.require(model) for model in models]

    def unit(self, model: str) -> list[Installed]:
        """Pending versions that were switched together with that of `model`, itself included.

        Empty when `model` is not pending.
        """
        with self._lock:
            return self._records.unit(model)

    def commit(self, model: str) -> Installed:
        """The pending version, and its unit with it, proved itself; older slots go."""
        with self._lock:
            models = [each.model for each in self.unit(model)]
            with self._records.transaction():
                self._records.commit(models)
            for each in models or [model]:
                self._collect(each)
            return self._records.require(model)

    def revert(self, model: str) -> Installed | None:
        """Back from a pending version, and its unit with it, to the versions before.

        Returns:
            What is current of `model` now; None when there was no version before.

        Raises:
            OSError: a link was not turned.  The database has gone back nevertheless, and `recover`
                turns the link.
        """
        with self._lock:
            models = [each.model for each in self.unit(model)]
            with self._records.transaction():
                for each in models:
                    self._records.step_back(each)
            failed: OSError | None = None
            for each in models:
                try:
                    self._settle_link(each)
                except OSError as error:
                    failed = error
                self._collect(each)
            if failed is not None:
                raise failed
            return self.current(model)

    def fall_back(self, model: str) -> Installed | None:
        """Change places of a committed version that no longer loads and the one before.

        Both slots stay, so that a release that loads again costs no download.

        Returns:
            What is current now; None, and nothing changed, when there is no whole version before.

        Raises:
            ValueError: the version is pending; `revert` it.
        """
        with self._lock:
            if self._records.is_pending(model):
                raise ValueError(f"{model} is pending")
            previous = self.previous(model)
            if previous is None or self.slot(model, previous.sha256) is None:
                return None
            with self._records.transaction():
                self._records.change_places(model)
            self._link(model, previous.sha256)
            return self._records.require(model)

    def place(self, switch: Switch, mode: TrialMode, share_ppm: int) -> Challenger:
        """Have a staged bundle tried beside the current one, PENDING until it is committed.

        What was tried before is not any more; its slot goes with the commit.

        Raises:
            BadBundle: it is not staged, or its manifest is another release's; nothing changed.
            LookupError: nothing is current.
        """
        model = switch.release.model
        with self._lock:
            self._records.require(model)
            variant = self._require_staged(switch).variant
            with self._records.transaction():
                self._records.place(switch, variant, mode, share_ppm)
            return self._require_challenger(model)

    def set_trial(self, model: str, mode: TrialMode, share_ppm: int) -> Challenger:
        """What is tried goes on in this way.

        Raises:
            LookupError: nothing is tried.
        """
        with self._lock:
            with self._records.transaction():
                self._records.set_trial(model, mode, share_ppm)
            return self._require_challenger(model)

    def commit_challenger(self, model: str) -> None:
        """What is tried proved itself; what was tried before it goes."""
        with self._lock:
            with self._records.transaction():
                self._records.commit_challenger(model)
            self._collect(model)

    def drop_challenger(self, model: str) -> None:
        """Nothing is tried any more."""
        with self._lock:
            with self._records.transaction():
                self._records.drop_challenger(model)
            self._collect(model)

    def recover(self) -> list[Reverted]:
        """Make the disk agree with the database; to be called once, before anything is served.

        Counts one try for every pending version, and reverts those that had `MAX_TRIES`.

        Returns:
            What was given up, for the report.
        """
        reverted: list[Reverted] = []
        with self._lock:
            for model in sorted({*self._directories(), *self.models()}):
                self._sweep(model)
                unit = self.unit(model)
                if not unit:
                    self._repair(model)
                elif unit[0].model == model:  # once a unit
                    reverted += self._recover_unit(unit)
            for challenger in self._records.challengers():
                reverted += self._recover_challenger(challenger.installed)
        return reverted

    # ── the rest ─────────────────────────────────────────────────────────────────────────────────

    def _recover_unit(self, unit: list[Installed]) -> list[Reverted]:
        with self._records.transaction():
            self._records.count_try([each.model for each in unit])
        lost = [each.model for each in unit if self.slot(each.model, each.sha256) is None]
        if not lost and all(each.tries < MAX_TRIES for each in unit):
            for each in unit:
                self._link(each.model, each.sha256)
            return []
        self.revert(unit[0].model)
        return [Reverted(each, self.current(each.model), "".join(lost[:1])) for each in unit]

    def _recover_challenger(self, tried: Installed) -> list[Reverted]:
        lost = self.slot(tried.model, tried.sha256) is None
        if not lost and (not tried.pending or tried.tries < MAX_TRIES):
            if tried.pending:
                with self._records.transaction():
                    self._records.count_challenger_try(tried.model)
            return []
        if lost:
            log.error("update.slot_lost model=%s version=%d", tried.model, tried.version)
        self.drop_challenger(tried.model)
        lost_model = tried.model if lost else ""
        return [Reverted(tried, self.current(tried.model), lost_model)] if tried.pending else []

    def _require_challenger(self, model: str) -> Challenger:
        challenger = self._records.challenger(model)
        if challenger is None:
            raise LookupError(f"nothing is tried of {model}")
        return challenger

    def _require_staged(self, switch: Switch) -> Manifest:
        slot = self.slot(switch.release.model, switch.sha256)
        if slot is None:
            raise BadBundle(f"{switch.sha256} is not staged")
        manifest = _manifest(slot)
        _require_release(manifest, switch.release)
        return manifest

    def _settle_link(self, model: str) -> None:
        """Point the link where the database says."""
        current = self.current(model)
        if current is None:
            self._files.remove_file(self._directory(model) / "current")
        else:
            self._link(model, current.sha256)

    def _repair(self, model: str) -> None:
        """Point the link at the committed version; at the one before when its slot is damaged."""
        current = self.current(model)
        if current is None:
            return
        if self.slot(model, current.sha256) is None:
            previous = self.previous(model)
            if previous is None or self.slot(model, previous.sha256) is None:
                log.error("update.slot_lost model=%s version=%d", model, current.version)
                self._records.forget(model)
                self._files.remove_file(self._directory(model) / "current")
                return
            with self._records.transaction():
                self._records.step_back(model)
            current = previous
        self._link(model, current.sha256)

    def _link(self, model: str, sha256: str) -> None:
        directory = self._directory(model)
        link, target = directory / "current", f"slots/{sha256}"
        if link.is_symlink() and str(link.readlink()) == target:
            return
        new = directory / "current.new"
        self._files.remove_file(new)
        self._files.symlink(target, new)
        self._files.rename(new, link)
        self._files.sync_directory(directory)

    def _sweep(self, model: str) -> None:
        for path in self._slots(model).glob(".tmp-*"):
            self._files.remove_tree(path)
        self._files.remove_file(self._directory(model) / "current.new")

    def _collect(self, model: str) -> None:
        """Remove slots that nothing names."""
        keep = self._named(model)
        for path in self._slots(model).glob("*"):
            if path.name not in keep:
                self._files.remove_tree(path)

    def _named(self, model: str) -> set[str]:
        """Digests of what is current, previous or tried."""
        challenger = self._records.challenger(model)
        known = [self._read(model, role) for role in ("current", "previous")]
        known.append(None if challenger is None else challenger.installed)
        return {one.sha256 for one in known if one is not None}

    def _read(self, model: str, role: Role) -> Installed | None:
        with self._lock:
            return self._records.read(model, role)

    def _directories(self) -> list[str]:
        return sorted(path.name for path in (self._root / "models").glob("*") if path.is_dir())

    def _directory(self, model: str) -> Path:
        return directory_of(self._root, model)

    def _slots(self, model: str) -> Path:
        return self._directory(model) / "slots"


def _require_release(manifest: Manifest, release: ReleaseInfo) -> None:
    """A slot is found by its digest alone, which a wrongly signed release may share."""
    if (manifest.model, manifest.version, manifest.profile) != (
        release.model,
        release.version,
        release.profile,
    ):
        raise BadBundle(
            f"the manifest is of {manifest.model} {manifest.version} "
            f"for {manifest.profile}, not of the signed release"
        )


def _manifest(slot: Path) -> Manifest:
    return Manifest.decode((slot / MANIFEST_NAME).read_bytes(), limit=MAX_MANIFEST_BYTES)
