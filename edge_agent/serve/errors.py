"""Errors of the serve room.  What a client did wrong comes from `pipeline` as well.

ServeError
├── BadRequest       the request is malformed (client)
│   └── BodyTooLarge it is longer than the bound, inflated or not (client)
├── Unauthorized     the bearer token is missing or wrong (client)
├── Forbidden        not for this client: step traces outside of the administrative socket, web
│                    pages of origins that are not named (client)
├── ModelNotServed   no such model or version here (client)
├── NotOffered       the protocol has it, this server does not (client)
├── Refused          an operator's command cannot be carried out now (client)
├── RateLimited      this client asks too often (client)
├── Overloaded       it would not be answered in time; try again later (client, operator)
│   └── Crowded      there is no room for it beside other requests (client, operator)
├── Expired          its time was over before it ran (client, operator)
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


class Unauthorized(ServeError):
    """The request carries no bearer token, or a wrong one."""

    def __init__(self) -> None:
        super().__init__("a bearer token is needed: Authorization: Bearer TOKEN")


class Forbidden(ServeError):
    """The client may not ask for this."""


class ModelNotServed(ServeError):
    """There is no such model or version."""


class NotOffered(ServeError):
    """The protocol knows the request; this server does not offer it."""


class Refused(ServeError):
    """An operator's command that cannot be carried out as things are."""


class RateLimited(ServeError):
    """The client's share of requests is used up for now."""

    def __init__(self, retry_after_s: int = 1) -> None:
        super().__init__("too many requests from this client; try again later")
        self.retry_after_s = retry_after_s


class Overloaded(ServeError):
    """Too much waits already for this request to be answered in time.

    Attributes:
        hold_s: for so long the client that asked had better not be read from: reading what has to
            be refused would take the time of those that can be answered.
    """

    hold_s = 0.0

    def __init__(self, model: str, retry_after_s: int = 1, hold_s: float = 0.0) -> None:
        super().__init__(f"model {model!r} is overloaded")
        self.retry_after_s = retry_after_s
        self.hold_s = hold_s


class Crowded(Overloaded):
    """The requests in the works hold as much as they may together."""

    def __init__(self) -> None:
        ServeError.__init__(self, "too much is in the works for other requests")
        self.retry_after_s = 1


class Expired(ServeError):
    """The time that the client gave was over before the request ran."""

    def __init__(self, model: str) -> None:
        super().__init__(f"model {model!r} did not come to the request within its timeout")


class NotServable(ServeError):
    """The bundle in a slot cannot be served."""


class CannotListen(ServeError):
    """The server cannot listen where it was told to."""
