"""Closed load by wrk: N connections, each with one request in the works.

Source: github.com/wg/wrk; one thread, so that a server of one process keeps a core of its own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.loads.errors import LoadFailed
from bench.loads.requests import HttpRequest

_UNITS_US = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6}


@dataclass(frozen=True, slots=True)
class WrkResult:
    """What one run of wrk counted.

    Attributes:
        refused: answers with another status than 2xx or 3xx.
        broken: connections not made, reads and writes that failed, answers that never came.
    """

    requests: int
    rps: float
    p50_us: float
    p99_us: float
    refused: int
    broken: int


def find() -> str:
    """Path of wrk.

    Raises:
        LoadFailed: it is not installed.
    """
    path = shutil.which("wrk")
    if path is None:
        raise LoadFailed("wrk is missing; install it ('apt-get install wrk')")
    return path


def command(url: str, script: Path, *, connections: int, seconds: int) -> list[str]:
    return [
        find(), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "5s", "--latency",
        "-s", str(script), url,
    ]  # fmt: skip


def run(port: int, request: HttpRequest, *, connections: int, seconds: int) -> WrkResult:
    """Send `request` over and over to the loopback address.

    Args:
        seconds: whole seconds; wrk knows no others.

    Raises:
        LoadFailed: wrk is missing or failed.
    """
    with tempfile.TemporaryDirectory() as place:
        script = request.lua(Path(place) / "request.lua")
        line = command(
            f"http://127.0.0.1:{port}{request.path}",
            script,
            connections=connections,
            seconds=seconds,
        )
        try:
            done = subprocess.run(line, capture_output=True, text=True, timeout=seconds + 60)
        except subprocess.TimeoutExpired as error:
            raise LoadFailed("wrk does not end") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise LoadFailed(f"wrk: {lines[-1]}")
    return parse(done.stdout)


def parse(text: str) -> WrkResult:
    """Read what wrk prints with `--latency`.

    Raises:
        LoadFailed: a figure is missing.
    """
    errors = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text
    )
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    return WrkResult(
        requests=int(_find(r"(\d+) requests in", text)),
        rps=float(_find(r"Requests/sec:\s+([\d.]+)", text)),
        p50_us=_latency_us("50%", text),
        p99_us=_latency_us("99%", text),
        refused=int(refused[1]) if refused else 0,
        broken=sum(map(int, errors.groups())) if errors else 0,
    )


def _find(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        raise LoadFailed(f"cannot read wrk's answer: {text[:300]!r}")
    return found[1]


def _latency_us(percentile: str, text: str) -> float:
    value = _find(rf"^\s+{percentile}\s+([\d.]+(?:us|ms|s|m)) *$", text)
    number = value.rstrip("usm")
    return float(number) * _UNITS_US[value[len(number) :]]
