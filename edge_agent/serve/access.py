"""Who may ask, and how often: the bearer token, and a bucket of requests for each client.

A client is an address on TCP and a user on a Unix socket, so two programs of one machine share a
bucket on loopback, and programs of two users have one each on a socket.  Transports that are given
the same `Buckets` share a client's too.
"""

from __future__ import annotations

import hmac
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from edge_agent.serve.errors import RateLimited, Unauthorized

_MAX_CLIENTS: Final = 4096


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A token bucket: `per_second` requests in the long run, `burst` at once."""

    per_second: float
    burst: float


class Buckets:
    """A bucket for each client; the clients longest unheard of are forgotten.  Not thread-safe."""

    def __init__(self, limit: RateLimit, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> None:
        """Take one request out of the client's bucket.

        Raises:
            RateLimited: it is empty.
        """
        limit = self._limit
        now = self._clock()
        level, at = self._levels.get(client, (limit.burst, now))
        level = min(limit.burst, level + (now - at) * limit.per_second)
        if level < 1.0:
            raise RateLimited(math.ceil((1.0 - level) / limit.per_second))
        self._levels[client] = (level - 1.0, now)
        self._levels.move_to_end(client)
        if len(self._levels) > _MAX_CLIENTS:
            self._levels.popitem(last=False)


def check_token(token: str, authorization: bytes) -> None:
    """Hold the header `Authorization` against the token, in constant time.

    Raises:
        Unauthorized: it is missing or wrong.
    """
    scheme, _, given = authorization.partition(b" ")
    if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), token.encode()):
        raise Unauthorized
