"""A client that reads every answer: right for the version that it names, or counted.

wrk counts but does not read; this one reads but is slow.  They run side by side.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import uvloop

from bench.loads.client import Connection, headers_of
from bench.loads.errors import LoadFailed, ServerFailed
from bench.loads.networks import Floats
from bench.loads.requests import HttpRequest, read_answer

_ATOL: Final = 1e-3
_GRACE_S: Final = 5.0


@dataclass(slots=True)
class Testimony:
    """What was seen.

    Attributes:
        versions: right answers by the version that they name.
        wrong: answers that are not their version's, or of no version that is known.
        refused: answers with another status than 200.
        broken: requests that were not answered.
    """

    versions: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    refused: int = 0
    broken: int = 0
    first_fault: str = ""

    @property
    def faults(self) -> int:
        return self.wrong + self.refused + self.broken


class _Witness:
    def __init__(
        self, port: int, request: HttpRequest, expected: Mapping[str, Floats], until_s: float
    ) -> None:
        self._port = port
        self._request = request.encode()
        self._expected = expected
        self._until_s = until_s
        self._open = 0
        self._over = asyncio.Event()
        self.seen = Testimony()

    async def run(self, connections: int) -> None:
        try:
            clients = [
                await Connection.open(self._port, self._answered) for _ in range(connections)
            ]
        except OSError as error:
            raise LoadFailed(f"witness: {error.strerror or error}") from error
        self._open = len(clients)
        for client in clients:
            client.send(self._request)
        left_s = max(0.0, self._until_s - time.monotonic()) + _GRACE_S
        try:
            await asyncio.wait_for(self._over.wait(), left_s)
        except TimeoutError:
            self.seen.broken += self._open
        for client in clients:
            client.close()

    def _answered(self, client: Connection, status: int, head: bytes, body: bytes) -> None:
        self._judge(status, head, body)
        if client.alive and time.monotonic() < self._until_s:
            client.send(self._request)
            return
        self._open -= 1
        if self._open == 0:
            self._over.set()

    def _judge(self, status: int, head: bytes, body: bytes) -> None:
        seen = self.seen
        if status == 0:
            seen.broken += 1
            fault = "a request was not answered"
        elif status != 200:
            seen.refused += 1
            fault = f"{status}: {body[:200].decode(errors='replace')}"
        else:
            try:
                version, logits = read_answer(headers_of(head), body)
            except ServerFailed as error:
                seen.wrong += 1
                fault = str(error)
            else:
                expected = self._expected.get(version)
                if expected is not None and matches(logits, expected):
                    seen.versions[version] += 1
                    return
                seen.wrong += 1
                fault = f"not the answer of version {version!r}"
        seen.first_fault = seen.first_fault or fault


def matches(logits: Floats, expected: Floats) -> bool:
    """Whether an answer is the expected one, but for the order of sums in a batch."""
    return logits.shape == expected.shape and bool(np.allclose(logits, expected, atol=_ATOL))


def watch(
    port: int,
    request: HttpRequest,
    expected: Mapping[str, Floats],
    *,
    connections: int,
    seconds: float,
) -> Testimony:
    """Ask over and over and read every answer; blocks for `seconds`.

    Args:
        expected: what each version answers to `request`.

    Raises:
        LoadFailed: the server cannot be reached.
    """

    async def run() -> Testimony:
        witness = _Witness(port, request, expected, time.monotonic() + seconds)
        await witness.run(connections)
        return witness.seen

    return uvloop.run(run())
