"""The command line of the outside suite tuf-conformance, over the agent's own client class.

    python -m edge_agent.update.conformance --metadata-dir D init TRUSTED_ROOT
    python -m edge_agent.update.conformance --metadata-dir D --metadata-url U refresh
    python -m edge_agent.update.conformance --metadata-dir D --metadata-url U
        --target-name N --target-base-url B --target-dir T download

Exit code 0, or 1 after one line on standard error.  `D` holds what is trusted as `ROLE.json`, the
root given at `init` (from which every run starts), and the high-water marks.

It is the client of one repository over HTTP: `edge_agent.update.repository`, with its cache, bounds
and marks.  What makes a device's two repositories one (`trust`) is not in the specification of TUF.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

from tuf.api import exceptions
from tuf.api.metadata import Root, TargetFile

from edge_agent.disk import write_whole, writing_whole
from edge_agent.update.errors import UpdateError
from edge_agent.update.http_fetch import HttpFetcher
from edge_agent.update.marks import Marks
from edge_agent.update.repository import Repository
from edge_agent.update.rules import trusted_time

TRUSTED_ROOT: Final = "trusted-root"
MARKS: Final = "marks.sqlite"
_BLOCK_BYTES: Final = 1 << 20


class Unusable(Exception):
    """The command line does not say what is needed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the answer is the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "init":
            init(options.metadata_dir, options.trusted_root)
        elif options.command == "refresh":
            with repository(options.metadata_dir, options.metadata_url) as client:
                client.refresh(trusted_time(time.time()))
        else:
            for name in ("target_name", "target_base_url", "target_dir"):
                if getattr(options, name) is None:
                    raise Unusable(f"download needs --{name.replace('_', '-')}")
            download(
                options.metadata_dir,
                options.metadata_url,
                options.target_name,
                options.target_base_url,
                options.target_dir,
            )
    except (UpdateError, Unusable, exceptions.DownloadError, OSError) as error:
        sys.stderr.write(f"{options.command}: {error}\n")
        return 1
    return 0


def init(directory: Path, trusted_root: Path) -> None:
    """Begin with `trusted_root` as what is trusted; nothing is fetched or judged.

    Raises:
        OSError: it cannot be read, or `directory` cannot be written.
    """
    data = trusted_root.read_bytes()
    directory.mkdir(parents=True, exist_ok=True)
    for name in (TRUSTED_ROOT, "root.json"):
        write_whole(directory / name, data, mode=0o644)


@contextmanager
def repository(directory: Path, url: str | None) -> Iterator[Repository]:
    """The client of the repository at `url`, with what `directory` knows of it.

    Raises:
        Unusable: no `url`.
        OSError: `directory` was not initialised, or the disk refused.
    """
    if url is None:
        raise Unusable("--metadata-url is missing")
    root = (directory / TRUSTED_ROOT).read_bytes()
    marks = Marks(directory / MARKS)
    try:
        keep = frozenset({TRUSTED_ROOT, MARKS})
        yield Repository("repository", url, directory, root, HttpFetcher(), marks, keep=keep)
    finally:
        marks.close()


def download(directory: Path, url: str | None, name: str, base_url: str, destination: Path) -> Path:
    """Bring the metadata up to date, then have the target `name` in `destination`.

    Returns:
        The file; it was not fetched when it was there and is the signed one.

    Raises:
        UpdateError, DownloadError: refused, or not to be had.
    """
    with repository(directory, url) as client:
        client.refresh(trusted_time(time.time()))
        target = client.target(name)
        if target is None:
            raise Unusable(f"the repository does not name {name}")
        prefixed = bool(client.cached("root", Root).consistent_snapshot)
    path = destination / quote(name, safe="")
    if not _is_there(path, target):
        destination.mkdir(parents=True, exist_ok=True)
        _fetch(target, _address(base_url, target, prefixed=prefixed), path)
    return path


def _address(base_url: str, target: TargetFile, *, prefixed: bool) -> str:
    name = target.get_prefixed_paths()[0] if prefixed else target.path
    return f"{base_url.rstrip('/')}/{quote(name, safe='/')}"


def _is_there(path: Path, target: TargetFile) -> bool:
    try:
        with path.open("rb") as file:
            target.verify_length_and_hashes(file)
    except (OSError, exceptions.LengthOrHashMismatchError):
        return False
    return True


def _fetch(target: TargetFile, url: str, path: Path) -> None:
    """Verified before it has its name; never more bytes than were signed."""
    with HttpFetcher().download_file(url, target.length) as file:
        try:
            target.verify_length_and_hashes(file)
        except exceptions.LengthOrHashMismatchError as error:
            raise exceptions.DownloadError(f"{target.path}: {error}") from error
        file.seek(0)
        with writing_whole(path, mode=0o644) as copy:
            while block := file.read(_BLOCK_BYTES):
                copy.write(block)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m edge_agent.update.conformance")
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name")
    parser.add_argument("--target-base-url")
    parser.add_argument("--target-dir", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    begin = commands.add_parser("init", help="trust a root")
    begin.add_argument("trusted_root", type=Path)
    commands.add_parser("refresh", help="bring the metadata up to date")
    commands.add_parser("download", help="fetch a target")
    return parser


if __name__ == "__main__":
    sys.exit(main())
