"""Errors of the runtime room.

SessionError              a network cannot be opened or run
├── RuntimeUnavailable    the runtime is not installed, or cannot work here (operator)
├── ModelNotLoadable      the file is missing or damaged, or is not what its spec says (engineer)
└── RunFailed             the runtime refused one run (engineer)
    └── UnfitInput        a value that this runtime cannot take, of a right type and shape (client)
"""

from __future__ import annotations


class SessionError(RuntimeError):
    """Base of all errors of this room."""


class RuntimeUnavailable(SessionError):
    """The runtime that the bundle asks for cannot be used here."""

    def __init__(self, runtime: str, reason: str) -> None:
        super().__init__(f"runtime {runtime} is unavailable: {reason}")
        self.runtime = runtime
        self.reason = reason


class ModelNotLoadable(SessionError):
    """The model file cannot be opened as its spec says."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: cannot be loaded: {reason}")
        self.file = file
        self.reason = reason


class RunFailed(SessionError):
    """One run of the network failed."""


class UnfitInput(RunFailed):
    """An input holds a value that the runtime cannot take; the network is not at fault."""
