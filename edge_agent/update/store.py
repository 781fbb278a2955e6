"""Slots: the versions of each model on this device, and which one is current.

    ROOT/state.sqlite                     SQLite, synchronous=FULL
    ROOT/models/MODEL/slots/SHA256/       an unpacked, verified bundle
    ROOT/models/MODEL/slots/.tmp-SHA256/  being staged; removed at start
    ROOT/models/MODEL/current             symlink to slots/SHA256

Rules, which make a power cut at any point leave the old version or the new one:
    * A slot appears by one rename, after all its files and its directory are synced.
    * A switch first commits PENDING{old, new} to the database, then renames the link.
    * The database is the truth; `recover` points the link where the database says.
    * Starts are counted only while PENDING: after `MAX_TRIES` of them the old version comes back.
      A committed version is never reverted by power cycles.
    * Two versions are kept: the current one and the one before.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from edge_agent.update.bundle import unpack
from edge_agent.update.errors import BadBundle
from edge_agent.update.files import Files
from edge_agent.update.marks import open_database
from edge_agent.update.reading import require_intact
from edge_agent.wire.ids import is_slug
from edge_agent.wire.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, ReleaseInfo

log = logging.getLogger("skerry.update")

MAX_TRIES: Final = 3
"""Starts of the agent that a pending version survives before it is taken for a crasher."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS installed(
    model TEXT, role TEXT CHECK (role IN ('current', 'previous')),
    sha256 TEXT NOT NULL, target TEXT NOT NULL, version INTEGER NOT NULL,
    counter INTEGER NOT NULL, variant TEXT NOT NULL, generation INTEGER NOT NULL,
    rollout TEXT, probation_s REAL NOT NULL,
    PRIMARY KEY (model, role));
CREATE TABLE IF NOT EXISTS pending(model TEXT PRIMARY KEY, tries INTEGER NOT NULL);
"""
_COLUMNS = "sha256, target, version, counter, variant, generation, rollout, probation_s"

Role = Literal["current", "previous"]


@dataclass(frozen=True, slots=True)
class Installed:
    """A version in a slot.

    Attributes:
        path: directory of the unpacked bundle.
        sha256: digest of the bundle.
        generation, rollout: of the assignment that brought it.
        pending: switched to, but not yet proven by its probation.
        tries: starts of the agent since the switch; 0 unless pending.
    """

    model: str
    path: Path
    sha256: str
    target: str
    version: int
    counter: int
    variant: str
    generation: int
    rollout: str | None
    probation_s: float
    pending: bool
    tries: int


@dataclass(frozen=True, slots=True)
class Reverted:
    """A pending version that `recover` gave up."""

    abandoned: Installed
    restored: Installed | None


class SlotStore:
    """See the module.  Thread-safe; one process at a time."""

    def __init__(self, root: Path, files: Files | None = None) -> None:
        self._root = root
        self._files = files or Files()
        self._lock = threading.RLock()
        self._database = open_database(root / "state.sqlite", _SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._database.close()

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def models(self) -> list[str]:
        """Models that have a current version."""
        with self._lock:
            rows = self._database.execute(
                "SELECT model FROM installed WHERE role = 'current' ORDER BY model"
            ).fetchall()
        return [row[0] for row in rows]

    def current(self, model: str) -> Installed | None:
        """What is served, pending or committed."""
        return self._read(model, "current")

    def previous(self, model: str) -> Installed | None:
        """What a revert goes back to."""
        return self._read(model, "previous")

    def slot(self, model: str, sha256: str) -> Path | None:
        """Directory of a staged bundle; None when it is not here."""
        path = self._slots(model) / sha256
        return path if (path / MANIFEST_NAME).is_file() else None

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

    def discard(self, model: str, sha256: str) -> None:
        """Remove a staged bundle that is neither current nor previous."""
        with self._lock:
            known = [self._read(model, role) for role in ("current", "previous")]
            if all(one is None or one.sha256 != sha256 for one in known):
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
        """Make a staged bundle current, PENDING until `commit` or `revert`.

        Raises:
            BadBundle: it is not staged, or its manifest is another release's.
            OSError: the disk refused; the version before is current again.
        """
        with self._lock:
            slot = self.slot(model, sha256)
            if slot is None:
                raise BadBundle(f"{sha256} is not staged")
            manifest = _manifest(slot)
            _require_release(manifest, release)
            row = (sha256, target, release.version, release.counter, manifest.variant)
            row_assignment = (generation, rollout, probation_s)
            with self._transaction() as database:
                pending = self._is_pending(model)
                if not pending:  # a pending version never becomes what a revert goes back to
                    database.execute(
                        "DELETE FROM installed WHERE model = ? AND role = 'previous'", (model,)
                    )
                    database.execute(
                        "UPDATE installed SET role = 'previous' WHERE model = ?", (model,)
                    )
                database.execute(
                    f"INSERT OR REPLACE INTO installed(model, role, {_COLUMNS}) "  # noqa: S608 (constant)
                    "VALUES (?, 'current', ?, ?, ?, ?, ?, ?, ?, ?)",
                    (model, *row, *row_assignment),
                )
                database.execute("INSERT OR REPLACE INTO pending VALUES (?, 0)", (model,))
            try:
                self._link(model, sha256)
            except OSError:
                self.revert(model)
                raise
            return self._require(model)

    def commit(self, model: str) -> Installed:
        """The pending version proved itself; older slots go."""
        with self._lock:
            self._database.execute("DELETE FROM pending WHERE model = ?", (model,))
            self._collect(model)
            return self._require(model)

    def revert(self, model: str) -> Installed | None:
        """Back from a pending version to the one before.

        Returns:
            What is current now; None when there was no version before.
        """
        with self._lock:
            if not self._is_pending(model):
                return self.current(model)
            with self._transaction() as database:
                database.execute(
                    "DELETE FROM installed WHERE model = ? AND role = 'current'", (model,)
                )
                database.execute("UPDATE installed SET role = 'current' WHERE model = ?", (model,))
                database.execute("DELETE FROM pending WHERE model = ?", (model,))
            restored = self.current(model)
            if restored is None:
                self._files.remove_file(self._directory(model) / "current")
            else:
                self._link(model, restored.sha256)
            self._collect(model)
            return restored

    def recover(self) -> list[Reverted]:
        """Make the disk agree with the database; to be called once, before anything is served.

        Counts one try for every pending version, and reverts those that had `MAX_TRIES`.

        Returns:
            What was given up, for the report.
        """
        reverted = []
        with self._lock:
            for model in self._directories():
                self._sweep(model)
                if not self._is_pending(model):
                    self._repair(model)
                    continue
                pending = self._require(model)
                self._database.execute(
                    "UPDATE pending SET tries = tries + 1 WHERE model = ?", (model,)
                )
                if pending.tries + 1 > MAX_TRIES or self.slot(model, pending.sha256) is None:
                    reverted.append(Reverted(pending, self.revert(model)))
                    log.warning("update.reverted model=%s version=%d", model, pending.version)
                else:
                    self._link(model, pending.sha256)
        return reverted

    # ── the rest ─────────────────────────────────────────────────────────────────────────────────

    def _repair(self, model: str) -> None:
        """Point the link at the committed version; at the one before when its slot is damaged."""
        current = self.current(model)
        if current is None:
            return
        if self.slot(model, current.sha256) is None:
            previous = self.previous(model)
            if previous is None or self.slot(model, previous.sha256) is None:
                log.error("update.slot_lost model=%s version=%d", model, current.version)
                self._database.execute("DELETE FROM installed WHERE model = ?", (model,))
                self._files.remove_file(self._directory(model) / "current")
                return
            with self._transaction() as database:
                database.execute(
                    "DELETE FROM installed WHERE model = ? AND role = 'current'", (model,)
                )
                database.execute("UPDATE installed SET role = 'current' WHERE model = ?", (model,))
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
        """Remove slots that are neither current nor previous."""
        known = [self._read(model, role) for role in ("current", "previous")]
        keep = {one.sha256 for one in known if one is not None}
        for path in self._slots(model).glob("*"):
            if path.name not in keep:
                self._files.remove_tree(path)

    def _read(self, model: str, role: Role) -> Installed | None:
        with self._lock:
            row = self._database.execute(
                f"SELECT {_COLUMNS} FROM installed WHERE model = ? AND role = ?",  # noqa: S608 (constant)
                (model, role),
            ).fetchone()
            tries = self._database.execute(
                "SELECT tries FROM pending WHERE model = ?", (model,)
            ).fetchone()
        if row is None:
            return None
        pending = role == "current" and tries is not None
        sha256, target, version, counter, variant, generation, rollout, probation_s = row
        return Installed(
            model=model,
            path=self._slots(model) / sha256,
            sha256=sha256,
            target=target,
            version=version,
            counter=counter,
            variant=variant,
            generation=generation,
            rollout=rollout,
            probation_s=probation_s,
            pending=pending,
            tries=tries[0] if pending else 0,
        )

    def _require(self, model: str) -> Installed:
        current = self.current(model)
        if current is None:
            raise LookupError(f"{model} has no version")
        return current

    def _is_pending(self, model: str) -> bool:
        row = self._database.execute("SELECT 1 FROM pending WHERE model = ?", (model,)).fetchone()
        return row is not None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._database.execute("BEGIN IMMEDIATE")
        with self._database:  # commits, or rolls back
            yield self._database

    def _directories(self) -> list[str]:
        return sorted(path.name for path in (self._root / "models").glob("*") if path.is_dir())

    def _directory(self, model: str) -> Path:
        if not is_slug(model):
            raise ValueError(f"not a model name: {model[:80]!r}")
        return self._root / "models" / model

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
