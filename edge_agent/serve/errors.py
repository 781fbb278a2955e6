"""Errors of the serve room.  What a client did wrong comes from `pipeline` as well.

ServeError
├── BadRequest       the request is malformed (client)
│   └── BodyTooLarge it is longer than the bound, inflated or not (client)
├── ModelNotServed   no such model or version here (client)
├── Overloaded       the queue is full; try again later (client, operator)
├── NotServable      a bundle cannot be served as it is (operator: keep the old one)
└── CannotListen     the address is taken or not ours (operator)
"""

from __future__ import annotations


class ServeError(Exception):
    """Base of all errors of this room."""


class BadRequest(ServeError):
    """The request cannot be understood."""


class BodyTooLarge(BadRequest):
    """The body is longer than the server accepts."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body is longer than {limit} bytes")
        self.limit = limit


class ModelNotServed(ServeError):
    """There is no such model or version."""


class Overloaded(ServeError):
    """Too many requests wait already."""

    def __init__(self, model: str, retry_after_s: int = 1) -> None:
        super().__init__(f"model {model!r} is overloaded")
        self.retry_after_s = retry_after_s


class NotServable(ServeError):
    """The bundle in a slot cannot be served."""


class CannotListen(ServeError):
    """The server cannot listen where it was told to."""
