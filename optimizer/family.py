"""A model family: one function that builds networks, the members it is called for, how they learn.

Members are written down one by one, or are the points of a grid of parameters:

    members: {tiny: {width: 4, depth: 1}}
    search: {width: [8, 16], depth: [2, 3], dropout: 0.1}    # width8-depth2, width8-depth3, …

Owns names and settings only.  Whoever trains calls the function with a member's parameters; the
optimizer then treats every member as a point of the same frontier.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    field_validator,
    model_validator,
)

from edge_agent.wire.ids import Slug, is_slug

MAX_MEMBERS: Final = 64
"""Members of one family: each is trained, if only for an epoch, and exported."""

FunctionName = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$"
    ),
]
"""`module:function`, the module relative to the project's directory."""

ParameterName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


@dataclass(frozen=True)
class Member:
    """One architecture of a family: keyword arguments of the building function."""

    name: str
    params: dict[str, JsonValue] = field(default_factory=dict)


class ModelFamily(BaseModel):
    """Networks that solve the same task at different cost.

    Attributes:
        build: function that returns an untrained network for a member's parameters.
        members: parameters by the member's name.
        search: values by parameter; every combination is a member, named by the parameters that
            have several values.  A value that is no list is the same for all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    build: FunctionName
    members: dict[Slug, dict[str, JsonValue]] = {}
    search: dict[ParameterName, JsonValue] = {}

    @field_validator("search")
    @classmethod
    def _bounded(cls, search: dict[str, JsonValue]) -> dict[str, JsonValue]:
        grid(search)
        return search

    @model_validator(mode="after")
    def _some_and_distinct(self) -> Self:
        if not self.members and not self.search:
            raise ValueError("a family needs members, or a search over parameters")
        points = grid(self.search)
        for point in points:
            if point.name in self.members:
                raise ValueError(f"'{point.name}' is a member and a point of the search")
        if len(self.members) + len(points) > MAX_MEMBERS:
            count = len(self.members) + len(points)
            raise ValueError(f"{count} members are more than the {MAX_MEMBERS} that are allowed")
        return self

    def all(self) -> tuple[Member, ...]:
        """The members in the order in which they are written, then the points of the search."""
        written = (Member(name, params) for name, params in self.members.items())
        return (*written, *grid(self.search))

    def params(self, name: str) -> dict[str, JsonValue]:
        """Parameters of the member `name`.

        Raises:
            KeyError: there is none.
        """
        return {member.name: member.params for member in self.all()}[name]


class TrainingSpec(BaseModel):
    """How each member is fitted: Adam on cross-entropy, the first output being the logits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(default=10, ge=1, le=10_000)
    batch_size: int = Field(default=64, ge=1, le=65_536)
    learning_rate: float = Field(default=1e-3, gt=0, le=10)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    seed: int = 0


@dataclass(frozen=True)
class Distillation:
    """How much a teacher's answers count beside the labels.

    The loss of a row is  (1 − weight)·CE(labels) + weight·T²·KL(teacher at T ‖ network at T).
    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.

    Attributes:
        temperature: T; above 1 the teacher's second choices count more.
        weight: 0..1.
    """

    temperature: float = 4.0
    weight: float = 0.5


def grid(search: Mapping[str, JsonValue]) -> tuple[Member, ...]:
    """Every combination of the values of `search`, the last parameter varying fastest.

    Raises:
        ValueError: an empty list, nothing that varies, too many combinations, or a combination
            whose name is too long or not its own.
    """
    if not search:
        return ()
    choices = {
        name: value if isinstance(value, list) else [value] for name, value in search.items()
    }
    count = 1
    for name, values in choices.items():
        if not values:
            raise ValueError(f"'{name}' has no values")
        count *= len(values)
    varied = [name for name, values in choices.items() if len(values) > 1]
    if not varied:
        raise ValueError("no parameter has several values; write one member instead")
    if count > MAX_MEMBERS:
        raise ValueError(f"{count} combinations are more than the {MAX_MEMBERS} that are allowed")
    found: dict[str, Member] = {}
    for point in itertools.product(*choices.values()):
        params = dict(zip(choices, point, strict=True))
        name = "-".join(_text(key) + _text(params[key]) for key in varied)
        if not is_slug(name):
            raise ValueError(f"'{name}' cannot be the name of a member; write the members instead")
        if name in found:
            raise ValueError(f"two combinations are named '{name}'")
        found[name] = Member(name, params)
    return tuple(found.values())


def _text(value: object) -> str:
    """A value as a part of a name: 0.5 is 0p5, -1 is m1, "Big One" is big-one."""
    text = str(value).lower()
    if isinstance(value, int | float):
        text = text.replace(".", "p").replace("-", "m").replace("+", "")
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")
