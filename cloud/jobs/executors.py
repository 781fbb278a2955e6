"""Where heavy steps run: a port, and the local processes that it defaults to.

Rules:
    * The child is a session of its own; it is killed as a group, and it ends with its parent.
    * One heavy child at a time on a machine: a file lock is held until the child itself is gone,
      so also a child that its worker left behind keeps the next one waiting.
    * A child's output is a log for people.  Its answer is `response.json`, its progress a pipe.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Final, Protocol

from pydantic import JsonValue

from cloud.jobs.errors import ChildDied, JobCancelled, StepFailed, StepTimeout

log = logging.getLogger("skerry.jobs")

POLL_S: Final = 0.1
CANCEL_CHECK_S: Final = 0.5
REPORT_INTERVAL_S: Final = 0.25
MAX_RESPONSE_BYTES: Final = 64 * 1024 * 1024


class Progress(Protocol):
    """Takes the share that is done, 0..1, one line on what is being done, and seconds left."""

    def __call__(self, share: float, text: str, left_s: float | None = None) -> None: ...


Cancelled = Callable[[], bool]


class Executor(Protocol):
    """Runs a task of `cloud.jobs.child` somewhere."""

    def run(
        self,
        task: str,
        request: Mapping[str, JsonValue],
        directory: Path,
        log_path: Path,
        *,
        progress: Progress,
        cancelled: Cancelled,
    ) -> dict[str, JsonValue]:
        """Run `task` to its end.

        Args:
            directory: exists; holds the task's input files and receives its output files.
            log_path: appended to.
            cancelled: asked now and then.

        Raises:
            StepFailed: the task says what is wrong.
            ChildDied: it ended without an answer.
            StepTimeout: it took too long.
            JobCancelled: `cancelled` said so; the task was ended.
        """
        ...


class LocalProcess:
    """Runs each task in a fresh process on this machine."""

    def __init__(
        self, lock_path: Path, *, timeout_s: float = 6 * 3600.0, threads: int | None = None
    ) -> None:
        """
        Args:
            lock_path: the machine-wide lock of heavy work.
            threads: threads of numerical libraries in a child; default all cores but one, which is
                left to the control plane.
        """
        self._lock_path = lock_path
        self._timeout_s = timeout_s
        self._threads = threads or max(1, len(os.sched_getaffinity(0)) - 1)
        self._running: set[int] = set()
        self._stopping = threading.Event()

    def run(
        self,
        task: str,
        request: Mapping[str, JsonValue],
        directory: Path,
        log_path: Path,
        *,
        progress: Progress,
        cancelled: Cancelled,
    ) -> dict[str, JsonValue]:
        """See `Executor`."""
        (directory / "request.json").write_text(json.dumps(dict(request)))
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with self._heavy(cancelled) as lock, log_path.open("ab") as output:
            output.write(f"── {task}\n".encode())
            output.flush()
            process = self._start(task, directory, output, lock)
            try:
                self._watch(process, task, progress, cancelled)
            finally:
                _kill(process)
                self._running.discard(process.pid)
        if self._stopping.is_set():
            # This process is about to end; the step stays open and the next worker runs it again.
            threading.Event().wait()
        return _answer(task, directory, process.returncode, log_path)

    def stop(self) -> None:
        """End every child.  Its step never returns: the worker must exit right after."""
        self._stopping.set()
        for pid in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _start(
        self, task: str, directory: Path, output: IO[bytes], lock: int
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "cloud.jobs.child", task, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            cwd=directory,
            env=_environment(self._threads),
            pass_fds=(lock,),
            start_new_session=True,
        )
        self._running.add(process.pid)
        return process

    def _watch(
        self,
        process: subprocess.Popen[bytes],
        task: str,
        progress: Progress,
        cancelled: Cancelled,
    ) -> None:
        reader = threading.Thread(target=_read_progress, args=(process.stdout, progress))
        reader.start()
        started = checked = time.monotonic()
        try:
            while process.poll() is None:
                time.sleep(POLL_S)
                now = time.monotonic()
                if now - started > self._timeout_s:
                    raise StepTimeout(f"{task} did not end within {self._timeout_s:g} s")
                if now - checked > CANCEL_CHECK_S:
                    checked = now
                    if cancelled():
                        raise JobCancelled("cancelled")
        finally:
            _kill(process)
            reader.join()

    @contextlib.contextmanager
    def _heavy(self, cancelled: Cancelled) -> Iterator[int]:
        self._lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if cancelled():
                        raise JobCancelled("cancelled") from None
                    time.sleep(CANCEL_CHECK_S)
            yield lock
        finally:
            os.close(lock)


def _environment(threads: int) -> dict[str, str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("SKERRY_")
    }
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        environment[name] = str(threads)
    # A thread that spins while it waits for a core that others use makes both slow.
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def _read_progress(stream: IO[bytes] | None, progress: Progress) -> None:
    """Pass on what the child reports, not more often than people can read."""
    if stream is None:
        return
    reported = -REPORT_INTERVAL_S
    with stream:
        for line in stream:
            now = time.monotonic()
            if now - reported < REPORT_INTERVAL_S:
                continue
            reported = now
            try:
                item = json.loads(line)
                left = item.get("left_s")
                progress(
                    min(max(float(item["share"]), 0.0), 1.0),
                    str(item["text"]),
                    None if left is None else float(left),
                )
            except Exception as error:  # the pipe must be read on, or the child would block
                log.warning("child.progress_lost error=%s", type(error).__name__)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _answer(task: str, directory: Path, status: int, log_path: Path) -> dict[str, JsonValue]:
    path = directory / "response.json"
    if not path.exists():
        cause = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        hint = " (out of memory?)" if status == -signal.SIGKILL else ""
        raise ChildDied(f"{task}: the process ended with {cause}{hint}; see {log_path.name}")
    if path.stat().st_size > MAX_RESPONSE_BYTES:
        raise ChildDied(f"{task}: the answer is too large")
    response = json.loads(path.read_bytes())
    if "error" in response:
        raise StepFailed(str(response["error"]))
    value: dict[str, JsonValue] = response["value"]
    return value
