"""One TUF repository as this device knows it: python-tuf's client, its cache, and our marks.

python-tuf decides about signatures, expiry, versions and the walk through delegations.  Added here:
    * the chain starts from the root given at enrolment, whatever the cache holds;
    * what is not a sound cache file is thrown away, so a damaged cache costs a download only;
    * what python-tuf renamed into the cache is synced before its versions become marks;
    * high-water marks hold roll-back protection when the cache is lost;
    * its errors become ours, and a time-out is never "not found".
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final, TypeVar

from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edge_agent.disk import sync_directory
from edge_agent.update.errors import ExpiredMetadata, NotAssigned, Unreachable, UntrustedMetadata
from edge_agent.update.marks import ROOT_NAME, Marks
from edge_agent.update.ports import Fetch, NotFound, TransferError
from edge_agent.update.rules import attested_time

log = logging.getLogger("skerry.update")

S = TypeVar("S", Root, Snapshot, Targets, Timestamp)

CONFIG: Final = UpdaterConfig(
    max_root_rotations=64,
    max_delegations=4,
    root_max_length=256_000,
    timestamp_max_length=16_384,
    snapshot_max_length=1_000_000,
    targets_max_length=2_000_000,
)
_LARGEST_FILE: Final = 2_000_000
_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})

Accept = Callable[[Targets], None]
"""Judges the top-level targets before anything of a refresh counts; raises to refuse."""


class Repository:
    """See the module.  For one thread."""

    def __init__(
        self,
        name: str,
        url: str,
        directory: Path,
        root: bytes,
        fetcher: FetcherInterface,
        marks: Marks,
        *,
        keep: frozenset[str] = frozenset(),
    ) -> None:
        """Nothing is fetched or read here.

        Args:
            name: what marks are kept under, and errors begin with.
            url: what precedes the name of every file that `fetcher` is asked for.
            directory: the cache; created when missing.
            root: first trusted root metadata.
            keep: names in `directory` that are not the cache's, and stay.
        """
        self.name = name
        self._url = url
        self._directory = directory
        self._root = root
        self._fetcher = fetcher
        self._marks = marks
        self._keep = keep
        self._updater: Updater | None = None
        self._synced: dict[Path, tuple[int, int]] = {}

    def refresh(self, now: datetime, accept: Accept = lambda targets: None) -> float:
        """Bring the top-level metadata up to date.

        Args:
            now: the time that expiry is judged by.

        Returns:
            Seconds since the epoch at which the timestamp says it was signed; 0 when it does not.

        Raises:
            UntrustedMetadata, RolledBack, or what `accept` raises: refused.
            ExpiredMetadata, Unreachable, NotAssigned: try again later.
            OSError: the disk refused.
        """
        self._updater = None
        self._tidy()
        try:
            updater = self._refreshed(now)
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise
            log.warning("trust.cache_unusable repository=%s cause=%s", self.name, error)
            self._empty()
            updater = self._refreshed(now)
        accept(self.cached("targets", Targets))
        self._sync()
        issued_at = self._raise_marks()
        self._updater = updater
        return issued_at

    def target(self, path: str) -> TargetFile | None:
        """What the repository says about a target; None when it does not name it.

        Raises:
            UntrustedMetadata: a role on the way to it is refused.
            ExpiredMetadata, Unreachable, NotAssigned: try again later.
        """
        if self._updater is None:
            raise NotAssigned("metadata was not refreshed")
        with self._translated():
            found = self._updater.get_targetinfo(path)
        self._sync()
        return found

    def cached(self, role: str, kind: type[S]) -> S:
        """Top-level metadata that the last refresh verified and kept."""
        data = (self._directory / f"{role}.json").read_bytes()
        signed = Metadata[S].from_bytes(data).signed
        if not isinstance(signed, kind):
            raise UntrustedMetadata(f"{self.name}: {role}.json holds {signed.type}")
        return signed

    def forget_set(self) -> None:
        """Drop everything but the roots from the cache; the marks stay."""
        self._updater = None
        for role in ("timestamp", "snapshot", "targets"):
            (self._directory / f"{role}.json").unlink(missing_ok=True)

    def online_keys_rotated(self) -> bool:
        """Whether a root has come that takes snapshot or timestamp from the keys last accepted."""
        known = self._marks.online_keys(self.name)
        return known is not None and known != online_keys(self.cached("root", Root))

    # ── python-tuf ───────────────────────────────────────────────────────────────────────────────

    def _refreshed(self, now: datetime) -> Updater:
        self._directory.mkdir(parents=True, exist_ok=True)
        with self._translated(now):
            updater = Updater(
                str(self._directory),
                self._url,
                fetcher=self._fetcher,
                config=CONFIG,
                bootstrap=self._root,
            )
            # python-tuf reads the clock in a constructor; there is no public way to give it ours.
            updater._trusted_set.reference_time = now
            try:
                updater.refresh()
            except exceptions.DownloadHTTPError as error:
                raise NotAssigned(f"{self.name}: no metadata for this device yet") from error
        return updater

    def _raise_marks(self) -> float:
        timestamp = self.cached("timestamp", Timestamp)
        snapshot = self.cached("snapshot", Snapshot)
        root = self.cached("root", Root)
        versions = {name: meta.version for name, meta in snapshot.meta.items()}
        versions |= {"timestamp.json": timestamp.version, "snapshot.json": snapshot.version}
        versions[ROOT_NAME] = root.version
        self._marks.check_metadata(self.name, versions, online_keys(root))
        issued_at = timestamp.unrecognized_fields.get("issued_at")
        return attested_time(issued_at, timestamp.expires.timestamp())

    @contextmanager
    def _translated(self, now: datetime | None = None) -> Iterator[None]:
        """Errors of python-tuf as ours."""
        try:
            yield
        except exceptions.ExpiredMetadataError as error:
            clock = f" by this device's time, {now:%Y-%m-%d %H:%M} UTC" if now else ""
            raise ExpiredMetadata(f"{self.name}: {error}{clock}") from error
        except exceptions.RepositoryError as error:
            raise UntrustedMetadata(f"{self.name}: {error}") from error
        except exceptions.DownloadLengthMismatchError as error:
            raise UntrustedMetadata(f"{self.name}: {error}") from error
        except exceptions.DownloadError as error:
            raise Unreachable(f"{self.name}: {error}") from error

    # ── cache ────────────────────────────────────────────────────────────────────────────────────

    def _tidy(self) -> None:
        """Remove what python-tuf would stumble over or leave for ever."""
        if not self._directory.is_dir():
            self._directory.unlink(missing_ok=True)
            return
        for path in self._directory.iterdir():
            history = path.name == "root_history" and path.is_dir() and not path.is_symlink()
            if history or path.name in self._keep:
                continue
            sound = path.suffix == ".json" and path.is_file()
            if not sound or path.stat().st_size > _LARGEST_FILE:
                _remove(path)

    def _empty(self) -> None:
        for path in self._directory.iterdir():
            if path.name not in self._keep:
                _remove(path)

    def _sync(self) -> None:
        """Bring to the disk what python-tuf wrote: it renames, but does not sync.

        Files of the root's history never change, and the first is written anew at every start.
        """
        history = self._directory / "root_history"
        changed = False
        for path in (*self._directory.glob("*.json"), *history.glob("*.json")):
            if path.is_symlink():
                continue
            status = path.stat()
            stamp = (0, 0) if path.parent == history else (status.st_ino, status.st_mtime_ns)
            if self._synced.get(path) != stamp:
                _sync_file(path)
                self._synced[path] = stamp
                changed = True
        if changed:
            sync_directory(history)
            sync_directory(self._directory)


class PortFetcher(FetcherInterface):
    """python-tuf's port on ours."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch_bytes = fetch

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            return iter([self._fetch_bytes(url)])
        except NotFound as error:
            raise exceptions.DownloadHTTPError(f"{url} does not exist", 404) from error
        except TransferError as error:
            raise exceptions.DownloadError(f"{url}: {error}") from error


def online_keys(root: Root) -> str:
    """Digest over the key ids of the snapshot and timestamp roles."""
    keys = sorted(keyid for role in ("snapshot", "timestamp") for keyid in root.roles[role].keyids)
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
