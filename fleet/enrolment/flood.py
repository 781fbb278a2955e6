"""How often an address, or a device, may be refused before it is not listened to for a while.

What is let through costs nothing: a batch of a thousand devices behind one address enrols as fast
as it can.  Who guesses, or sends rubbish, is slowed down.  Pure; the caller holds the clock.

Memory is bounded: of more than `addresses`, the one that was quiet longest is forgotten.
"""

from __future__ import annotations

import ipaddress
import threading
from collections import OrderedDict
from typing import Final

BURST: Final = 30
"""Refusals at once."""
PER_S: Final = 0.5
"""Refusals a second after that."""
ADDRESSES: Final = 10_000


class Refusals:
    """A bucket for each address; every refusal takes one drop.  Thread-safe."""

    def __init__(
        self, burst: float = BURST, per_s: float = PER_S, addresses: int = ADDRESSES
    ) -> None:
        self._burst = burst
        self._per_s = per_s
        self._addresses = addresses
        self._lock = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # drops, and when

    def wait_s(self, address: str, now: float) -> float:
        """Seconds until `address` is listened to; 0 at once.

        Args:
            now: seconds of any steady clock.
        """
        with self._lock:
            left = self._at(_network(address), now)
        return 0.0 if left >= 1.0 else (1.0 - left) / self._per_s

    def count(self, address: str, now: float) -> None:
        """`address` was refused."""
        key = _network(address)
        with self._lock:
            self._left[key] = (max(self._at(key, now) - 1.0, 0.0), now)
            self._left.move_to_end(key)
            while len(self._left) > self._addresses:
                self._left.popitem(last=False)

    def __len__(self) -> int:
        return len(self._left)

    def _at(self, key: str, now: float) -> float:
        left, since = self._left.get(key, (self._burst, now))
        return min(self._burst, left + max(now - since, 0.0) * self._per_s)


def _network(address: str) -> str:
    """An IPv4 address, or the /64 of an IPv6 one: who has one of those has all of them."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, 64), strict=False).network_address)
    return str(parsed)
