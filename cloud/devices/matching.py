"""Queries as conditions of the database, so that ten thousand devices are filtered where they lie.

Means exactly what `fleet.devices.conditions` means on `cloud.devices.facts`, on SQLite and on
PostgreSQL; a test compares them on random queries and devices.  Every name and value travels as a
bound parameter.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    JSON,
    ColumnElement,
    Float,
    Numeric,
    Text,
    and_,
    cast,
    false,
    func,
    literal,
    not_,
    or_,
    select,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import array
from sqlalchemy.orm import InstrumentedAttribute, Session
from sqlalchemy.types import TypeEngine

from cloud.db.tables import Device, DeviceGroup, GroupMember
from cloud.errors import UserError
from fleet.devices.conditions import And, Compare, Condition, Has, InGroup, Like, Not, OneOf
from fleet.devices.facts import Field, Kind, Of, Value, version_text
from fleet.devices.query import Query, parse

Test = ColumnElement[bool]

MAX_GROUP_DEPTH: Final = 8
"""How deep groups may be defined by other groups."""

_COLUMNS: Final = frozenset(
    Field(Of.ITSELF, name) for name in ("id", "profile", "online", "revoked", "enrolled")
)
_TEXTS: Final = frozenset({Kind.TEXT, Kind.VERSION})
_COMPARE: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt,
    "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def where(session: Session, query: Query, now: float) -> Test:
    """The condition on `Device` under which a device matches.

    Args:
        now: seconds since the epoch; ages are counted from it.

    Raises:
        UserError: the query asks for a group that does not exist.
    """
    return _Translation(session, now).of(query.condition)


class _Translation:
    def __init__(self, session: Session, now: float) -> None:
        self._session = session
        self._now = now
        self._postgres = session.get_bind().dialect.name == "postgresql"

    def of(self, condition: Condition, depth: int = 0) -> Test:
        if isinstance(condition, And):
            return and_(*(self.of(part, depth) for part in condition.parts))
        if isinstance(condition, Not):
            return not_(self.of(condition.part, depth))
        if isinstance(condition, Compare):
            return self._compare(condition)
        if isinstance(condition, OneOf):
            place = self._place(condition.field)
            values = [self._value(condition.field, value) for value in condition.values]
            found: Test = place.not_in(values) if condition.negated else place.in_(values)
            return _known(found)
        if isinstance(condition, Like):
            place = self._place(condition.field)
            alike = self._like(place, condition.pattern)
            return _known(not_(alike) if condition.negated else alike)
        if isinstance(condition, Has):
            return self._has(condition.field)
        if isinstance(condition, InGroup):
            return self._in_group(condition.name, depth)
        return or_(*(self.of(part, depth) for part in condition.parts))

    def _compare(self, test: Compare) -> Test:
        compare = _COMPARE[test.operator]
        if test.by_version:
            place, value = self._version_order(test.field), version_text(str(test.value))
        else:
            place, value = self._place(test.field), self._value(test.field, test.value)
        if self._postgres and test.field.kind in _TEXTS and test.operator not in ("==", "!="):
            place = place.collate("C")  # by code point, as SQLite and Python do
        holds: Test = compare(place, value)
        # of a plain column there is always something, and the database may use its index
        return holds if test.field in _COLUMNS else _known(holds)

    def _like(self, place: ColumnElement[Any], pattern: str) -> Test:
        if not self._postgres:
            return place.op("GLOB", is_comparison=True)(pattern.replace("[", "[[]"))
        for special in ("\\", "%", "_"):
            pattern = pattern.replace(special, "\\" + special)
        return place.like(pattern.replace("*", "%").replace("?", "_"), escape="\\")

    def _has(self, field: Field) -> Test:
        if field.of is Of.ISA:
            flags = at(self._session, Device.inventory, "cpu_flags")
            find = func.strpos if self._postgres else func.instr
            # the flag is of plain characters, which JSON never escapes
            return _known(find(flags, f'"{field.name}"') > 0)
        if field.kind is Kind.FLAGS:
            flags = at(self._session, Device.inventory, "cpu_flags")
            return _known(flags != "[]")
        return self._place(field).is_not(None)

    def _in_group(self, name: str, depth: int) -> Test:
        group = self._session.get(DeviceGroup, name)
        if group is None:
            raise UserError(f"query: there is no group {name!r}; see 'skerry groups list'")
        if not group.query:
            members = select(GroupMember.device).where(GroupMember.group == name)
            return Device.id.in_(members)
        if depth >= MAX_GROUP_DEPTH:
            raise UserError(f"query: group {name!r} is defined by too many groups in a row")
        return self.of(parse(group.query).condition, depth + 1)

    # ── places and values ────────────────────────────────────────────────────────────────────────

    def _place(self, field: Field) -> ColumnElement[Any]:
        """What the device has there; NULL where it has nothing."""
        if field.of is Of.LABEL:
            return at(self._session, Device.labels, field.name)
        if field.of is Of.RUNTIME:
            return func.nullif(at(self._session, Device.facts, "runtimes", field.name), "")
        if field.of is Of.MODEL:
            return self._number(Device.facts, "models", field.name, "version")
        if field.of in (Of.MODEL_VARIANT, Of.MODEL_PHASE):
            return func.nullif(
                at(self._session, Device.facts, "models", field.name, field.of.value), ""
            )
        return self._own(field.name)

    def _version_order(self, field: Field) -> ColumnElement[Any]:
        """A text that is ordered as the field's versions are."""
        if field.of is Of.RUNTIME:
            return at(self._session, Device.facts, "runtime_order", field.name)
        return at(self._session, Device.facts, "agent_order")

    def _own(self, name: str) -> ColumnElement[Any]:
        if name == "last_seen":
            return self._now - func.nullif(Device.last_seen, 0.0, type_=Float)
        if name == "enrolled":
            return self._now - Device.enrolled_at
        if name in ("cores", "memory_mib"):
            return self._number(Device.facts, name)
        if name in ("machine", "board"):
            return func.nullif(at(self._session, Device.facts, name), "")
        if name == "agent_version":
            return func.nullif(at(self._session, Device.facts, name), "")
        columns: dict[str, ColumnElement[Any]] = {
            "id": Device.id.expression,
            "profile": Device.profile.expression,
            "online": Device.online.expression,
            "revoked": Device.revoked.expression,
        }
        return columns[name]

    def _number(
        self, column: InstrumentedAttribute[dict[str, Any]], *path: str
    ) -> ColumnElement[Any]:
        found = at(self._session, column, *path)
        # NUMERIC holds every number that JSON can hold; a device says what it likes
        return cast(found, Numeric) if self._postgres else type_coerce(found, Float)

    def _value(self, field: Field, value: Value) -> Any:
        if self._postgres and field.kind is Kind.NUMBER:
            return literal(Decimal(repr(value)), Numeric)
        return value


def _known(test: Test) -> Test:
    """Two-valued: false where there is nothing, never NULL."""
    return func.coalesce(test, false())


def at(
    session: Session,
    column: InstrumentedAttribute[dict[str, Any]],
    *path: str,
    kind: type[TypeEngine[Any]] = Text,
) -> ColumnElement[Any]:
    """What a JSON column holds at a path, NULL for nothing.

    Args:
        path: names without quotes and without backslashes.
        kind: Text for a text or number, JSON for an object or array.
    """
    if session.get_bind().dialect.name == "postgresql":
        place = cast(array(path), ARRAY(Text))
        return column.op("#>" if kind is JSON else "#>>", return_type=kind())(place)
    return func.json_extract(column, "$" + "".join(f'."{name}"' for name in path), type_=kind)
