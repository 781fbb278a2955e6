"""Errors of the registry.

RegistryError             a change that the registry does not allow
├── UnknownVersion        the model has no such version (user)
├── VersionTaken          another job registered this version (job)
├── NotAllowed            the state does not lead there (user)
└── GatesFailed           a gate says fail, and nobody overrode it (user)
AuditBroken               the audit's chain does not verify (operator)
"""

from __future__ import annotations

from collections.abc import Sequence

from cloud.errors import Conflict, NotFound, OperatorError, UserError


class RegistryError(UserError):
    """A change that the registry does not allow."""


class UnknownVersion(RegistryError, NotFound):
    def __init__(self, model: str, version: int) -> None:
        super().__init__(f"model {model!r} has no version {version}")
        self.model = model
        self.version = version


class VersionTaken(RegistryError, Conflict):
    def __init__(self, model: str, version: int, job: str) -> None:
        super().__init__(f"version {version} of {model!r} was registered by job {job}")
        self.job = job


class NotAllowed(RegistryError, Conflict):
    """Carries the states that could have been asked for."""

    def __init__(
        self, model: str, version: int, state: str, to_state: str, allowed: Sequence[str]
    ) -> None:
        choices = ", ".join(allowed) or "nothing"
        super().__init__(
            f"{model!r} version {version} is {state} and cannot become {to_state}; "
            f"allowed: {choices}"
        )
        self.state = state
        self.to_state = to_state
        self.allowed = tuple(allowed)


class GatesFailed(RegistryError, Conflict):
    def __init__(self, model: str, version: int, gates: Sequence[str]) -> None:
        super().__init__(f"{model!r} version {version} failed its gates: {', '.join(gates)}")
        self.gates = tuple(gates)


class AuditBroken(OperatorError):
    """The first entry that does not follow from its predecessor."""

    def __init__(self, entry: int, why: str) -> None:
        super().__init__(f"audit entry {entry}: {why}")
        self.entry = entry
