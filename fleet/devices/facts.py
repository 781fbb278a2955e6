"""What is known of a device when a query looks at it, and the names that queries call it by."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

Value = str | float | bool
"""What a field of a device holds, and what it is compared with.  Whole numbers are floats too."""

_VERSION: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,3}")
_VERSION_PARTS: Final = 4


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model on a device, as the device reports it."""

    version: int
    variant: str = ""
    phase: str = ""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """One device.  None, an empty text, or a name that is not in a mapping: not known.

    Attributes:
        last_seen_s: seconds since the device was last heard of.
        enrolled_s: seconds since it was enrolled.
        isa: flags of its processor, as the kernel names them.
        runtimes: inference runtime → version.
        groups: names of all groups that it is in.
    """

    id: str
    profile: str
    online: bool = False
    revoked: bool = False
    last_seen_s: float | None = None
    enrolled_s: float | None = None
    agent_version: str = ""
    machine: str = ""
    board: str = ""
    cores: int | None = None
    memory_mib: int | None = None
    isa: frozenset[str] = frozenset()
    runtimes: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, ModelFacts] = field(default_factory=dict)
    groups: frozenset[str] = frozenset()


class Kind(Enum):
    """What can be compared with a field."""

    TEXT = "a text"
    VERSION = "a version"
    NUMBER = "a number"
    AGE = "an age"
    TRUTH = "true or false"
    FLAGS = "a set of flags"


class Of(Enum):
    """Which part of a device a field is in."""

    ITSELF = ""
    LABEL = "label"
    RUNTIME = "runtime"
    MODEL = "model"
    MODEL_VARIANT = "variant"
    MODEL_PHASE = "phase"
    ISA = "isa"


KINDS: Final[dict[str, Kind]] = {
    "id": Kind.TEXT,
    "profile": Kind.TEXT,
    "online": Kind.TRUTH,
    "revoked": Kind.TRUTH,
    "last_seen": Kind.AGE,
    "enrolled": Kind.AGE,
    "agent_version": Kind.VERSION,
    "machine": Kind.TEXT,
    "board": Kind.TEXT,
    "cores": Kind.NUMBER,
    "memory_mib": Kind.NUMBER,
    "isa": Kind.FLAGS,
}
"""Fields of the device itself."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field by its place and name; `name` is the label's, model's, runtime's or flag's."""

    of: Of
    name: str

    @property
    def kind(self) -> Kind:
        if self.of is Of.ITSELF:
            return KINDS[self.name]
        return {Of.RUNTIME: Kind.VERSION, Of.MODEL: Kind.NUMBER, Of.ISA: Kind.FLAGS}.get(
            self.of, Kind.TEXT
        )

    def value(self, device: DeviceFacts) -> Value | None:
        """What `device` has there; None where it has nothing.  Not for flags."""
        if self.of is Of.ITSELF:
            return self._own(device)
        if self.of is Of.LABEL:
            return device.labels.get(self.name)
        if self.of is Of.RUNTIME:
            return device.runtimes.get(self.name) or None
        model = device.models.get(self.name)
        if model is None:
            return None
        if self.of is Of.MODEL:
            return model.version
        return (model.variant if self.of is Of.MODEL_VARIANT else model.phase) or None

    def _own(self, device: DeviceFacts) -> Value | None:
        if self.name == "online":
            return device.online
        if self.name == "revoked":
            return device.revoked
        numbers = {
            "last_seen": device.last_seen_s,
            "enrolled": device.enrolled_s,
            "cores": device.cores,
            "memory_mib": device.memory_mib,
        }
        if self.name in numbers:
            return numbers[self.name]
        texts = {
            "id": device.id,
            "profile": device.profile,
            "agent_version": device.agent_version,
            "machine": device.machine,
            "board": device.board,
        }
        return texts[self.name] or None


def version_key(text: str) -> tuple[int, ...] | None:
    """Four numbers by which versions are ordered; None for what does not begin with a number.

    What follows the numbers ("rc1", "+cpu") does not count: "1.2" and "1.2.0rc1" are equal here.
    """
    found = _VERSION.match(text)
    if found is None:
        return None
    parts = [int(part) for part in found.group().split(".")]
    return tuple(parts + [0] * (_VERSION_PARTS - len(parts)))


def version_text(text: str | None) -> str | None:
    """`version_key` as a text that is ordered like it, for databases; None for what is none."""
    key = version_key(text) if text is not None else None
    return None if key is None else ".".join(f"{part:09d}" for part in key)
