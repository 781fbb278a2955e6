"""The parts of a query, and when each holds.  Pure.

Two-valued: what a device does not have makes a comparison false, also one with `!=` or `not in`;
`not` then makes it true.  `cloud.devices.matching` says the same in SQL.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from fleet.devices.facts import DeviceFacts, Field, Kind, Of, Value, version_key

Operator = Literal["==", "!=", "<", "<=", ">", ">="]


@dataclass(frozen=True, slots=True)
class Compare:
    """A field against one value.  Versions are ordered by their numbers; texts by code point."""

    field: Field
    operator: Operator
    value: Value

    def holds(self, device: DeviceFacts) -> bool:
        found = self.field.value(device)
        if found is None:
            return False
        if self.by_version:
            return _ordered(version_key(str(found)), self.operator, version_key(str(self.value)))
        return _ordered(found, self.operator, self.value)

    @property
    def by_version(self) -> bool:
        return self.field.kind is Kind.VERSION and self.operator not in ("==", "!=")


@dataclass(frozen=True, slots=True)
class OneOf:
    """A field against several values."""

    field: Field
    values: tuple[Value, ...]
    negated: bool = False

    def holds(self, device: DeviceFacts) -> bool:
        found = self.field.value(device)
        return found is not None and (found in self.values) != self.negated


@dataclass(frozen=True, slots=True)
class Like:
    """A text against a pattern: `*` is any text, `?` any one character; case counts."""

    field: Field
    pattern: str
    negated: bool = False

    def holds(self, device: DeviceFacts) -> bool:
        found = self.field.value(device)
        if found is None:
            return False
        return (_regex(self.pattern).fullmatch(str(found)) is not None) != self.negated


@dataclass(frozen=True, slots=True)
class Has:
    """The device has something there."""

    field: Field

    def holds(self, device: DeviceFacts) -> bool:
        if self.field.of is Of.ISA:
            return self.field.name in device.isa
        if self.field.kind is Kind.FLAGS:
            return bool(device.isa)
        return self.field.value(device) is not None


@dataclass(frozen=True, slots=True)
class InGroup:
    """The device is in the group of this name."""

    name: str

    def holds(self, device: DeviceFacts) -> bool:
        return self.name in device.groups


@dataclass(frozen=True, slots=True)
class Not:
    part: Condition

    def holds(self, device: DeviceFacts) -> bool:
        return not self.part.holds(device)


@dataclass(frozen=True, slots=True)
class And:
    parts: tuple[Condition, ...]

    def holds(self, device: DeviceFacts) -> bool:
        return all(part.holds(device) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Or:
    parts: tuple[Condition, ...]

    def holds(self, device: DeviceFacts) -> bool:
        return any(part.holds(device) for part in self.parts)


Condition = Compare | OneOf | Like | Has | InGroup | Not | And | Or


def depth(condition: Condition) -> int:
    """Levels of `and`, `or` and `not`; without recursion, for nobody has bounded them yet."""
    deepest = 0
    waiting = [(condition, 1)]
    while waiting:
        part, level = waiting.pop()
        deepest = max(deepest, level)
        if isinstance(part, Not):
            waiting.append((part.part, level + 1))
        elif isinstance(part, And | Or):
            waiting.extend((each, level + 1) for each in part.parts)
    return deepest


def groups_in(condition: Condition) -> frozenset[str]:
    """Names of the groups that a condition asks for."""
    if isinstance(condition, InGroup):
        return frozenset({condition.name})
    if isinstance(condition, Not):
        return groups_in(condition.part)
    if isinstance(condition, And | Or):
        return frozenset().union(*(groups_in(part) for part in condition.parts))
    return frozenset()


def _ordered(left: object, operator: Operator, right: object) -> bool:
    if left is None or right is None:
        return False
    if operator == "==":
        return left == right
    if operator == "!=":
        return left != right
    if operator == "<":
        return left < right  # type: ignore[operator, no-any-return]  # the parser pairs the kinds
    if operator == "<=":
        return left <= right  # type: ignore[operator, no-any-return]
    if operator == ">":
        return left > right  # type: ignore[operator, no-any-return]
    return left >= right  # type: ignore[operator, no-any-return]


@lru_cache(256)
def _regex(pattern: str) -> re.Pattern[str]:
    # fnmatch tries each `*` once: a pattern of many costs no more than its length says
    return re.compile(fnmatch.translate(pattern.replace("[", "[[]")))
