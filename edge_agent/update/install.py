"""From a verified assignment to a staged slot: chunk list, chunks, decode, stage.

Nothing is fetched when the slot is there already, as for a roll-back to bytes still on disk; a slot
that the disk damaged is fetched anew.
A delta is taken when its base is installed and has its digest still.  Whatever goes wrong with it
is reported, and the full form is fetched instead: a delta never ends an update.
Temporary files are removed once the slot stands, and kept for resuming when it does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from edge_agent.update.base import SlotBundle
from edge_agent.update.decode import choose, decode
from edge_agent.update.errors import BadBundle, TransferFailed, Unreachable
from edge_agent.update.ports import Fetch, NotFound, TransferError
from edge_agent.update.store import SlotStore
from edge_agent.update.transfer import Transfer
from edge_agent.update.transfer_part import kept_bytes
from edge_agent.update.trust import Assigned
from edge_agent.wire.manifest import Encoding, ReleaseInfo
from edge_agent.wire.messages import Phase

DISK_MARGIN_BYTES: Final = 16 << 20


class Progress(Protocol):
    """Where the steps of an installation are told."""

    def __call__(self, phase: Phase, reason: str = "", detail: str = "") -> None:
        """
        Args:
            reason: slug of what made it take another way, "delta_failed" or "delta_base_damaged";
                empty when all goes well.
            detail: one line for a person.
        """
        ...


class Obtain(Protocol):
    """Turns an assignment into a staged slot."""

    def __call__(
        self, assigned: Assigned, progress: Progress, interrupted: Callable[[], bool]
    ) -> Path:
        """The slot's directory.

        Raises:
            UpdateError, OSError: it could not be had.
        """
        ...


class Installer:
    """`Obtain` over a chunk transfer.  For one thread."""

    def __init__(
        self,
        store: SlotStore,
        transfer: Transfer,
        fetch: Fetch,
        directory: Path,
        *,
        memory_bytes: int = 256 << 20,
    ) -> None:
        """
        Args:
            fetch: gets `chunks/SHA256`, the chunk lists.
            directory: for raw bundles before they are staged, on the slots' disk.
            memory_bytes: what decoding may use.
        """
        self._store = store
        self._transfer = transfer
        self._fetch = fetch
        self._directory = directory
        self._memory_bytes = memory_bytes
        self._distrusted: set[str] = set()  # deltas that failed; not fetched again before a restart

    def __call__(
        self, assigned: Assigned, progress: Progress, interrupted: Callable[[], bool]
    ) -> Path:
        release = assigned.release
        self._store.drop_damaged(release.model, assigned.sha256)
        slot = self._store.slot(release.model, assigned.sha256)
        if slot is not None:
            self.tidy()  # of a crash right after it was staged
            progress("staged")
            return slot
        self._store.tidy(release.model)  # what was staged for an assignment that is past
        self._remove_raw()
        raw = self._directory / f"{assigned.sha256}.bundle"
        try:
            self._obtain(assigned, raw, progress, interrupted)
            progress("verified")
            slot = self._store.stage(raw, assigned.sha256, release)
        finally:
            raw.unlink(missing_ok=True)
        self.tidy()
        progress("staged")
        return slot

    def tidy(self) -> None:
        """Remove what is kept of downloads; none goes on beside this one."""
        self._transfer.keep_only(set())
        self._remove_raw()

    def _remove_raw(self) -> None:
        for path in self._directory.glob("*.bundle"):
            path.unlink(missing_ok=True)

    def _obtain(
        self, assigned: Assigned, raw: Path, progress: Progress, interrupted: Callable[[], bool]
    ) -> None:
        """Write the raw bundle, by a delta if that works."""
        forms = assigned.release.encodings
        delta = self._delta(assigned.release, progress)
        if delta is not None:
            encoding, base = delta
            with base:
                try:
                    self._fetch_and_decode(encoding, assigned, raw, progress, interrupted, base)
                except (BadBundle, TransferFailed) as error:
                    self._distrusted.add(encoding.sha256)
                    progress("downloading", "delta_failed", str(error))
                else:
                    return
        encoding = choose(forms, self._memory_bytes)
        self._fetch_and_decode(encoding, assigned, raw, progress, interrupted)

    def _delta(
        self, release: ReleaseInfo, progress: Progress
    ) -> tuple[Encoding, SlotBundle] | None:
        """The shortest form, when that is a delta, with its base; the caller closes the base."""
        forms = [form for form in release.encodings if form.sha256 not in self._distrusted]
        slots: dict[str, Path] = {}
        for form in forms:
            if form.base_sha256 is not None:
                slot = self._store.slot(release.model, form.base_sha256)
                if slot is not None:
                    slots[form.base_sha256] = slot
        while slots:
            encoding = choose(forms, self._memory_bytes, slots)
            if encoding.base_sha256 is None:
                return None
            base = _open_base(slots.pop(encoding.base_sha256), encoding.base_sha256)
            if base is not None:
                return encoding, base
            detail = f"{encoding.base_sha256} is not what it was when it was installed"
            progress("downloading", "delta_base_damaged", detail)
        return None

    def _fetch_and_decode(
        self,
        encoding: Encoding,
        assigned: Assigned,
        raw: Path,
        progress: Progress,
        interrupted: Callable[[], bool],
        base: SlotBundle | None = None,
    ) -> None:
        self._transfer.keep_only({encoding.sha256})
        self._check_space(assigned.length, encoding)
        progress("downloading")
        packed = self._transfer.download(
            encoding,
            assigned.release.chunk_bytes,
            chunk_list(self._fetch, encoding),
            interrupted=interrupted,
        )
        decode(encoding, packed, assigned.length, assigned.sha256, raw, base)

    def _check_space(self, raw_length: int, encoding: Encoding) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        missing = encoding.length - kept_bytes(self._directory, encoding)
        self._store.require_room(missing + 2 * raw_length + DISK_MARGIN_BYTES)


def chunk_list(fetch: Fetch, encoding: Encoding) -> bytes:
    """The digests of an encoding's chunks, as they were signed.

    Raises:
        TransferFailed: there is no such list, or it is another one.
        Unreachable: no answer of the control plane.
    """
    try:
        data = fetch(f"chunks/{encoding.chunks_sha256}")
    except NotFound as error:
        raise TransferFailed("there is no chunk list", "chunk_missing") from error
    except TransferError as error:
        raise Unreachable(f"chunk list: {error}") from error
    if hashlib.sha256(data).hexdigest() != encoding.chunks_sha256:
        raise TransferFailed("the chunk list is not the signed one", "chunk_list_wrong")
    return data


def _open_base(slot: Path, sha256: str) -> SlotBundle | None:
    """The raw bundle of a slot; None when it has another digest or cannot be read."""
    try:
        base = SlotBundle(slot)
    except BadBundle:
        return None
    try:
        if base.sha256() == sha256:
            return base
    except BadBundle:
        pass
    base.close()
    return None
