"""Errors of the API client.

ApiError               one line, fit to be shown as it is; `status` is 0 without an answer
├── Unreachable        nobody answered: start the control plane, or mend address or network
├── SignInNeeded       401: the token is missing, wrong or revoked
└── UnexpectedAnswer   an answer that is not what the API says: client and server differ
"""

from __future__ import annotations


class ApiError(Exception):
    """The control plane refused, or could not be asked.

    Attributes:
        status: HTTP status; 0 where no answer came.
        message: one line: what is wrong and, where known, what to do.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Unreachable(ApiError):
    """No answer came from the address."""

    def __init__(self, message: str) -> None:
        super().__init__(0, message)


class SignInNeeded(ApiError):
    """The token is missing, wrong or revoked."""

    def __init__(self, message: str) -> None:
        super().__init__(401, message)


class UnexpectedAnswer(ApiError):
    """The answer does not have the form of its schema."""
