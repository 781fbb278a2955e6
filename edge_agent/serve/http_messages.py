"""Requests and responses of the HTTP server as values, and the bounds of one server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import orjson

_MAX_ERROR_CHARS: Final = 1000
_JSON: Final = b"application/json"


@dataclass(slots=True)
class Limits:
    """Bounds of one server, shared by its connections, and by gRPC where it is given the same.

    Attributes:
        max_connections: over TCP and the Unix socket for predictions.
        max_admin_connections: over the administrative socket, which clients cannot crowd out.
        max_inflight_bytes: of `inflight_bytes`; who holds little may go beyond it.
        idle_s: a connection without a request for this long is closed.
        message_s: a request that is not complete after this long is given up.
        inflight_bytes: of all requests that have arrived and are not answered yet, and what was
            inflated of them.
    """

    max_connections: int = 256
    max_admin_connections: int = 16
    max_inflight_bytes: int = 64 * 1024 * 1024
    idle_s: float = 120.0
    message_s: float = 60.0
    inflight_bytes: int = 0


class HttpRequest:
    """One complete request.

    Attributes:
        target: as in the request line, percent-encoded, with its query.
        headers: the few that are used, by lower-case name.
        arrived_s: when its last byte was read, by `time.perf_counter`.
        allowed_origin: set by the handler: pages of this origin may read the answer.
    """

    __slots__ = (
        "allowed_origin", "arrived_s", "body", "headers", "keep_alive", "method", "target",
    )  # fmt: skip

    def __init__(
        self, method: bytes, target: bytes, headers: dict[bytes, bytes], body: bytes,
        arrived_s: float, keep_alive: bool,
    ) -> None:  # fmt: skip
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.arrived_s = arrived_s
        self.keep_alive = keep_alive
        self.allowed_origin = b""

    @property
    def accepts_encoding(self) -> str:
        """The encoding that the answer may have: "gzip", "deflate", or empty for none."""
        value = self.headers.get(b"accept-encoding")
        if value is None:
            return ""
        offered = [item.strip() for item in value.lower().split(b",")]
        return next((name for name in ("gzip", "deflate") if name.encode() in offered), "")


@dataclass(slots=True)
class HttpResponse:
    status: int
    parts: list[bytes]
    content_type: bytes = _JSON
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


def json_response(value: object, status: int = 200) -> HttpResponse:
    return HttpResponse(status, [orjson.dumps(value)])


def error_response(status: int, message: str, retry_after_s: int | None = None) -> HttpResponse:
    """An error as the protocol has it; of a client's own words that fill megabytes, a few lines."""
    if len(message) > _MAX_ERROR_CHARS:
        message = f"{message[:_MAX_ERROR_CHARS]}…"
    text = message.encode(errors="replace").decode()  # a step's words may be no text
    headers = [] if retry_after_s is None else [(b"Retry-After", str(retry_after_s).encode())]
    return HttpResponse(status, [orjson.dumps({"error": text})], headers=headers)
