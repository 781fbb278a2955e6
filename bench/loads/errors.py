"""What keeps a figure from being taken.

BenchError
├── ServerFailed      the server does not start, ends, or answers wrongly
├── LoadFailed        the load generator could not do its work
└── PeerUnavailable   a peer cannot be installed here
"""

from __future__ import annotations


class BenchError(Exception):
    """One line that says why there is no figure."""


class ServerFailed(BenchError):
    pass


class LoadFailed(BenchError):
    pass


class PeerUnavailable(BenchError):
    pass
