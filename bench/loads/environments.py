"""Environments of their own for what we are compared with.

They are made once, below `$SKERRY_BENCH_CACHE` or `~/.cache/skerry/bench-peers`, from the exact
versions in `bench/peers/*.txt` and without resolving: pip fetches what is named there and nothing
else.  A changed file makes the environment anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from bench.loads.errors import PeerUnavailable

HERE: Final = Path(__file__).parent.parent / "peers"

_INSTALL_S: Final = 1800.0
_MARK: Final = "pins.sha256"


def cache_directory() -> Path:
    given = os.environ.get("SKERRY_BENCH_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "skerry" / "bench-peers"


def pins_of(name: str) -> str:
    """The exact versions of an environment, one a line."""
    return (HERE / f"{name}.txt").read_text(encoding="ascii")


def environment(name: str, cache: Path) -> Path:
    """The interpreter of the environment `name`, which is made if it is not there.

    Raises:
        PeerUnavailable: it cannot be made.
    """
    place = cache / name
    python = place / "bin" / "python"
    digest = hashlib.sha256(pins_of(name).encode()).hexdigest()
    with contextlib.suppress(OSError):
        if (place / _MARK).read_text(encoding="ascii") == digest and python.exists():
            return python
    if place.exists():
        shutil.rmtree(place)
    try:
        place.mkdir(parents=True)
    except OSError as error:
        raise PeerUnavailable(f"{place}: {error.strerror or error}") from error
    _run([sys.executable, "-m", "venv", str(place)])
    pins = str(HERE / f"{name}.txt")
    _run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:",
          "--disable-pip-version-check", "-r", pins])  # fmt: skip
    (place / _MARK).write_text(digest, encoding="ascii")
    return python


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerUnavailable(f"{' '.join(command[:4])}: {error}") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        said = (lines or done.stderr.splitlines() or ["no reason given"])[-1]
        raise PeerUnavailable(f"cannot be installed: {said[:300]}")
