"""Running code of a bundle that may crash, hang or eat the memory: in a subprocess, under limits.

Memory, CPU time, core dumps and file sizes are limited in the child; the parent kills its whole
process group at the wall-clock limit, and when it is interrupted.

At its very end the child hands back a token that it was given, with its answer behind it.  A status
of 0 alone proves nothing: a step file that ends the process has it too.
"""

from __future__ import annotations

import argparse
import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Final

EXIT_WRONG: Final = 3
"""The child's exit status when it could judge, and judged against the bundle."""

_TICK_S: Final = 0.1
"""How long an interruption may go unseen."""
_DETAIL_BYTES: Final = 400
_TOKEN_BYTES: Final = 16
_MAX_ANSWER_BYTES: Final = 1 << 20
_MAX_FILE_BYTES: Final = 64 << 20
_KEPT_ENVIRONMENT: Final = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "TMPDIR",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a child.

    Attributes:
        answer: what it handed back at its very end; None when it did not get there.
        detail: why it did not, in one line; empty when it did.
    """

    answer: bytes | None
    detail: str
    elapsed_s: float


def never() -> bool:
    """An interruption that does not come."""
    return False


def run_confined(
    module: str,
    arguments: Sequence[str],
    *,
    timeout_s: float,
    memory_mib: int,
    cpu_s: int | None = None,
    environment: Mapping[str, str] | None = None,
    interrupted: Callable[[], bool] = never,
) -> Outcome:
    """Run `python -m module arguments`, which calls `child`.

    Args:
        timeout_s: wall-clock limit.
        memory_mib: limit of the child's data (RLIMIT_DATA), in MiB.
        cpu_s: limit of its CPU time, of all threads together; about `timeout_s` by default.
        environment: added to the little that it inherits.
        interrupted: asked several times a second; True ends the child.
    """
    started_at = time.monotonic()
    token = secrets.token_bytes(_TOKEN_BYTES)
    inherited = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    with (
        tempfile.TemporaryFile() as errors,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as answered,
    ):
        given.write(token)
        given.seek(0)
        command = [
            sys.executable,
            "-P",
            "-m",
            module,
            *arguments,
            f"--memory-mib={memory_mib}",
            f"--cpu-s={int(timeout_s) + 1 if cpu_s is None else cpu_s}",
            f"--token-fd={answered.fileno()}",
        ]
        child = subprocess.Popen(
            command,
            stdin=given,
            pass_fds=(answered.fileno(),),
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**inherited, "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})},
            start_new_session=True,
        )
        try:
            status = _wait(child, timeout_s, interrupted)
        except subprocess.TimeoutExpired:
            why = "interrupted" if interrupted() else f"no answer within {timeout_s:g} s"
            return Outcome(None, why, time.monotonic() - started_at)
        finally:
            _end(child)
        answer = _proved(answered, token) if status == 0 else None
        detail = "" if answer is not None else _explain(status, _tail(errors.fileno()))
    return Outcome(answer, detail, time.monotonic() - started_at)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _wait(child: subprocess.Popen[bytes], timeout_s: float, interrupted: Callable[[], bool]) -> int:
    """The child's exit status.

    Raises:
        TimeoutExpired: it has none in time, or was interrupted.
    """
    end_at = time.monotonic() + timeout_s
    while True:
        left_s = end_at - time.monotonic()
        try:
            return child.wait(max(0.0, min(_TICK_S, left_s)))
        except subprocess.TimeoutExpired:
            if left_s <= _TICK_S or interrupted():
                raise


def _proved(answered: IO[bytes], token: bytes) -> bytes | None:
    """What follows the token; None where it is not the token that was given."""
    data = os.pread(answered.fileno(), _TOKEN_BYTES + _MAX_ANSWER_BYTES, 0)
    return data[_TOKEN_BYTES:] if data[:_TOKEN_BYTES] == token else None


def _tail(descriptor: int) -> str:
    length = os.fstat(descriptor).st_size
    data = os.pread(descriptor, _DETAIL_BYTES, max(0, length - _DETAIL_BYTES))
    lines = data.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _explain(status: int, last_line: str) -> str:
    if status == 0:
        return f"ended before it was tried to the end; {last_line}".rstrip("; ")
    if status == EXIT_WRONG and last_line:
        return last_line
    if status < 0:
        return f"killed by {signal.Signals(-status).name}; {last_line}".rstrip("; ")
    return f"exit status {status}; {last_line}".rstrip("; ")


# ── the child ────────────────────────────────────────────────────────────────────────────────────


def child(parser: argparse.ArgumentParser, task: Callable[[argparse.Namespace], bytes]) -> int:
    """Body of a module that `run_confined` runs; returns its exit status.

    Args:
        parser: knows the module's own arguments.
        task: runs under the limits; what it returns is the answer, and what it raises the reason.
    """
    parser.add_argument("--memory-mib", type=int, required=True)
    parser.add_argument("--cpu-s", type=int, default=61)
    parser.add_argument("--token-fd", type=int, help="where what stdin holds proves success")
    arguments = parser.parse_args()
    # taken before any code of the bundle runs
    token = b"" if arguments.token_fd is None else os.read(0, _TOKEN_BYTES)
    _limit(arguments.memory_mib, arguments.cpu_s)
    try:
        answer = task(arguments)
    except (Exception, SystemExit) as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        sys.stderr.write(f"\n{line[:_DETAIL_BYTES]}\n")
        return EXIT_WRONG
    if arguments.token_fd is not None:
        os.write(arguments.token_fd, token + answer)
    return 0


def _limit(memory_mib: int, cpu_s: int) -> None:
    for kind, value in (
        (resource.RLIMIT_DATA, memory_mib << 20),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, _MAX_FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (limit, limit))
