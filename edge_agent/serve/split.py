"""Which requests a version under trial takes: a share of them, drawn by a hash of who asks.

The same key is drawn alike for as long as the trial lasts, so whoever asks again is answered by the
same version.  A larger share only adds keys; a smaller one only takes some away.
"""

from __future__ import annotations

import hashlib
from typing import Final

_SPAN: Final = 2**64
MAX_KEY_CHARS: Final = 256


class Split:
    """See the module.

    Attributes:
        share: of all keys, 0 to 1; may be changed at any time from any thread.
    """

    __slots__ = ("_salt", "share")

    def __init__(self, salt: str, share: float) -> None:
        """
        Args:
            salt: tells trials apart, so that each draws its own clients.
        """
        self._salt = hashlib.blake2b(salt.encode(), digest_size=16).digest()
        self.share = share

    def takes(self, key: str) -> bool:
        """Whether the version under trial answers `key`."""
        name = key[:MAX_KEY_CHARS].encode(errors="replace")
        digest = hashlib.blake2b(name, digest_size=8, key=self._salt).digest()
        return int.from_bytes(digest, "big") < self.share * _SPAN
