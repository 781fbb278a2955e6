"""A model family: one function that builds networks, the members it is called for, how they learn.

Owns names and settings only.  Whoever trains calls the function with a member's parameters; the
optimizer then treats every member as a point of the same frontier.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from edge_agent.wire.ids import Slug

FunctionName = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$"
    ),
]
"""`module:function`, the module relative to the project's directory."""


@dataclass(frozen=True)
class Member:
    """One architecture of a family: keyword arguments of the building function."""

    name: str
    params: dict[str, JsonValue] = field(default_factory=dict)


class ModelFamily(BaseModel):
    """Networks that solve the same task at different cost.

    Attributes:
        build: function that returns an untrained network for a member's parameters.
        members: parameters by the member's name, at least one member.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    build: FunctionName
    members: dict[Slug, dict[str, JsonValue]] = Field(min_length=1)

    def all(self) -> tuple[Member, ...]:
        """The members in the order in which they are written."""
        return tuple(Member(name, params) for name, params in self.members.items())


class TrainingSpec(BaseModel):
    """How each member is fitted: Adam on cross-entropy, the first output being the logits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(default=10, ge=1, le=10_000)
    batch_size: int = Field(default=64, ge=1, le=65_536)
    learning_rate: float = Field(default=1e-3, gt=0, le=10)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    seed: int = 0
