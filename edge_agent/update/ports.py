"""What the update room needs from the outside; `edge_agent.agent` plugs adapters in.

A time-out is never taken for "not found": the two are different errors, because "there is no newer
root" must come from the control plane and not from a broken line.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue

from edge_agent.wire.messages import ChunkReply, ChunkRequest, TrialMode, UpdateReport


class NotFound(LookupError):
    """The control plane said that there is no such file."""


class TransferError(OSError):
    """No usable answer: a time-out, a lost connection, or a refusal."""


Fetch = Callable[[str], bytes]
"""All bytes of `image/NAME`, `director/NAME` or `chunks/SHA256`; blocking.

Raises:
    NotFound: the control plane said so.
    TransferError: anything else.
"""

Clock = Callable[[], float]
"""Seconds; of the epoch or monotonic, as the parameter says."""

ChunkReplies = queue.Queue[tuple[ChunkReply, bytes]]


class ChunkPort(Protocol):
    """Where chunks are asked for and arrive."""

    @property
    def replies(self) -> ChunkReplies:
        """Every chunk reply that arrives, in any order, duplicates included.  Bounded."""
        ...

    def request(self, request: ChunkRequest) -> object:
        """Send a request.  It may be lost: the caller asks again.

        Returns:
            False when it was certainly not sent, as without a line; anything else tells nothing.
        """
        ...


@dataclass(frozen=True, slots=True)
class HealthSample:
    """Serving figures of a model since the last sample.

    Attributes:
        requests: requests answered, errors included.
        errors: requests that failed for a cause of ours (not rejected inputs).
        latency_p99_ms: None when there were no requests.
        rss_mib: resident memory of the agent; None when unknown.
    """

    requests: int
    errors: int
    latency_p99_ms: float | None = None
    rss_mib: float | None = None


Health = Callable[[str], HealthSample | None]
"""Figures of a model by name; None when it is not served."""

Activate = Callable[[str, Path], None]
"""Load the bundle in a directory and serve it under the model's name; raises when it cannot."""

Deactivate = Callable[[str], None]
"""Stop serving a model."""


class Beside(Protocol):
    """What tries a version beside the one that serves its model."""

    def begin(self, model: str, directory: Path, mode: TrialMode, share: float, salt: str) -> None:
        """Load the bundle in `directory` and try it, instead of what was tried before.

        Args:
            share: of the requests, 0 to 1.
            salt: tells trials apart; the same one draws the same clients.

        Raises:
            UpdateError: its memory does not fit.
            Exception: it cannot be served, or not beside the version that serves.
        """
        ...

    def change(self, model: str, mode: TrialMode, share: float) -> None:
        """Go on in this way, if anything is tried; nothing is loaded."""
        ...

    def end(self, model: str) -> None:
        """Try nothing any more; nothing happens when nothing is tried."""
        ...

    def health(self, model: str) -> HealthSample | None:
        """Figures of what is tried since the last call; None when nothing is."""
        ...

    def recheck(self, model: str) -> None:
        """Have what is tried answer its golden inputs; raises when it does not."""
        ...


Report = Callable[[UpdateReport], None]
"""Journal a report; returns when it is durable."""

Event = Callable[[str, Mapping[str, JsonValue]], None]
"""Journals an event for the control plane, by name."""
