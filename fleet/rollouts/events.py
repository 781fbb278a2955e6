"""What can happen to a rollout, and what it asks to be done.

Events come from people, devices and the clock.  Effects are requests: the driver carries each out
at least once, and answers `Assign` with `Assigned` and `PublishPrevious` with `RollbackReady` or
`RollbackImpossible`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from fleet.rollouts.model import (
    AssignmentPhase,
    Comparison,
    Frozen,
    Previous,
    Release,
    RolloutState,
)

Verdict = Literal["pass", "fail", "insufficient"]

# ── events ───────────────────────────────────────────────────────────────────────────────────────


class Started(Frozen):
    """The draft is complete."""

    kind: Literal["started"] = "started"


class Approved(Frozen):
    """A second person lets the rollout start, or its next wave be offered."""

    kind: Literal["approved"] = "approved"
    actor: str


class Pause(Frozen):
    kind: Literal["pause"] = "pause"
    actor: str


class Resume(Frozen):
    """Go on; accepts an inconclusive wave."""

    kind: Literal["resume"] = "resume"
    actor: str


class Cancel(Frozen):
    """Offer nothing more, and take back what no device has begun to activate."""

    kind: Literal["cancel"] = "cancel"
    actor: str


class Halt(Frozen):
    """Stop because something is wrong; what is in flight is taken back as with `Cancel`."""

    kind: Literal["halt"] = "halt"
    actor: str
    reason: str = ""


class Rollback(Frozen):
    """Give every device what it had before, under new counters."""

    kind: Literal["rollback"] = "rollback"
    actor: str


class RollbackReady(Frozen):
    """`releases`: previous target → its bytes under a new counter."""

    kind: Literal["rollback_ready"] = "rollback_ready"
    releases: dict[str, Release]


class RollbackImpossible(Frozen):
    kind: Literal["rollback_impossible"] = "rollback_impossible"
    reason: str


class Assigned(Frozen):
    """The twin of `device` names the release under `generation`.

    `release` is given where another than the asked one was assigned: the same bytes under a higher
    counter, for a device that would refuse the asked one.
    """

    kind: Literal["assigned"] = "assigned"
    device: str
    generation: int = Field(ge=1)
    previous: Previous | None = None
    release: Release | None = None


class Delivered(Frozen):
    """`device` has seen its twin up to `generation`."""

    kind: Literal["delivered"] = "delivered"
    device: str
    generation: int


class DeviceReported(Frozen):
    kind: Literal["reported"] = "reported"
    device: str
    generation: int
    phase: AssignmentPhase
    reason: str = ""
    detail: str = ""


class Connectivity(Frozen):
    kind: Literal["connectivity"] = "connectivity"
    device: str
    online: bool


class Dropped(Frozen):
    """`device` is no longer this rollout's: a newer assignment took it, or it was revoked."""

    kind: Literal["dropped"] = "dropped"
    device: str
    phase: Literal[AssignmentPhase.SUPERSEDED, AssignmentPhase.CANCELLED]
    reason: str


class Superseded(Frozen):
    """The newer rollout `by` has begun, and has these devices."""

    kind: Literal["superseded"] = "superseded"
    devices: tuple[str, ...]
    by: str


class Joined(Frozen):
    """`device` enrolled, or came to match, while the rollout goes on."""

    kind: Literal["joined"] = "joined"
    device: str
    profile: str
    online: bool = True


class Tick(Frozen):
    """Time passed.  `comparison` is of the wave that soaks, when figures are at hand."""

    kind: Literal["tick"] = "tick"
    comparison: Comparison | None = None


Event = (
    Started
    | Approved
    | Pause
    | Resume
    | Cancel
    | Halt
    | Rollback
    | RollbackReady
    | RollbackImpossible
    | Assigned
    | Delivered
    | DeviceReported
    | Connectivity
    | Dropped
    | Superseded
    | Joined
    | Tick
)

# ── effects ──────────────────────────────────────────────────────────────────────────────────────


class Assign(Frozen):
    """Make `release` the desired one of `device` under a new generation."""

    kind: Literal["assign"] = "assign"
    device: str
    release: Release


class Withdraw(Frozen):
    """Set the twin of `device` back to `previous`, if `generation` is still its newest."""

    kind: Literal["withdraw"] = "withdraw"
    device: str
    generation: int
    previous: Previous | None


class Supersede(Frozen):
    """Tell older rollouts of the model that these devices are not theirs to offer to any more."""

    kind: Literal["supersede"] = "supersede"
    devices: tuple[str, ...]


class PublishPrevious(Frozen):
    """Publish the bytes of each of these targets again, under the next counter."""

    kind: Literal["publish_previous"] = "publish_previous"
    targets: tuple[str, ...]


class GateDecided(Frozen):
    kind: Literal["gate_decided"] = "gate_decided"
    wave: int
    gate: str
    verdict: Verdict
    reason: str
    evidence: dict[str, float | int | str | None]


class StateChanged(Frozen):
    kind: Literal["state_changed"] = "state_changed"
    before: RolloutState
    after: RolloutState
    reason: str
    actor: str


Effect = Annotated[
    Assign | Withdraw | Supersede | PublishPrevious | GateDecided | StateChanged,
    Field(discriminator="kind"),
]
EFFECTS: TypeAdapter[list[Effect]] = TypeAdapter(list[Effect])
"""Reads and writes effects that wait to be carried out."""
