"""From the words of a query to its condition: which names are fields, what fits with what."""

from __future__ import annotations

import re
from typing import Final, cast

from lark import Token, Transformer, v_args

from edge_agent.wire.ids import is_slug
from fleet.devices.conditions import (
    And,
    Compare,
    Condition,
    Has,
    InGroup,
    Like,
    Not,
    OneOf,
    Operator,
    Or,
)
from fleet.devices.facts import KINDS, Field, Kind, Of, Value, version_key

MAX_LABEL_CHARS: Final = 64
_UNIT_S: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.+-]{1,64}")
_TEXTS: Final = frozenset({Kind.TEXT, Kind.VERSION})


class Misused(Exception):
    """Words that parse and mean nothing; `token` is where."""

    def __init__(self, token: Token, reason: str) -> None:
        super().__init__(reason)
        self.token = token


class _Named:
    """A field where it stands in the query."""

    def __init__(self, token: Token, field: Field) -> None:
        self.token = token
        self.field = field
        self.written = str(token)


class _Valued:
    """A value where it stands in the query."""

    def __init__(self, token: Token, value: Value, kind: Kind) -> None:
        self.token = token
        self.value = value
        self.kind = kind


@v_args(inline=True)
class Meaning(Transformer[Token, Condition]):
    """Called by the parser for each rule, from the inside out."""

    def any(self, *parts: Condition) -> Condition:
        return Or(parts)

    def all(self, *parts: Condition) -> Condition:
        return And(parts)

    def negate(self, part: Condition) -> Condition:
        return Not(part)

    def field(self, head: Token, *tail: Token) -> _Named:
        names = [_text(part) if part.type == "STRING" else str(part) for part in tail]
        return _Named(head, _field(head, names))

    def value(self, token: Token) -> _Valued:
        if token.type == "STRING":
            return _Valued(token, _text(token), Kind.TEXT)
        if token.type == "NUMBER":
            return _Valued(token, float(token), Kind.NUMBER)
        if token.type == "AGE":
            return _Valued(token, float(token[:-1]) * _UNIT_S[token[-1]], Kind.AGE)
        return _Valued(token, token.type == "TRUE", Kind.TRUTH)

    def values(self, *values: _Valued) -> tuple[_Valued, ...]:
        return values

    def compare(self, named: _Named, operator: Token, value: _Valued) -> Condition:
        kind = named.field.kind
        _fits(named, value)
        if kind is Kind.TRUTH and operator not in ("==", "!="):
            raise Misused(operator, f"{named.written} is true or false: expected == or !=")
        made = Compare(named.field, cast(Operator, str(operator)), value.value)
        if made.by_version and version_key(str(value.value)) is None:
            raise Misused(value.token, 'expected a version such as "0.2.1"')
        return made

    def one_of(self, named: _Named, values: tuple[_Valued, ...]) -> Condition:
        return _one_of(named, values, negated=False)

    def none_of(self, named: _Named, values: tuple[_Valued, ...]) -> Condition:
        return _one_of(named, values, negated=True)

    def like(self, named: _Named, pattern: Token) -> Condition:
        return _like(named, pattern, negated=False)

    def unlike(self, named: _Named, pattern: Token) -> Condition:
        return _like(named, pattern, negated=True)

    def flag(self, name: Token, named: _Named) -> Condition:
        if named.field != Field(Of.ITSELF, "isa"):
            raise Misused(named.token, f'{named.written} is no set; only isa is: "avx2" in isa')
        return Has(_flag(name, _text(name)))

    def no_flag(self, name: Token, named: _Named) -> Condition:
        return Not(self.flag(name, named))

    def has(self, named: _Named) -> Condition:
        return Has(named.field)

    def in_group(self, name: Token) -> Condition:
        if not is_slug(_text(name)):
            raise Misused(name, "expected a group's name: lower-case letters, digits and '-'")
        return InGroup(_text(name))

    def truth(self, named: _Named) -> Condition:
        if named.field.of is Of.ISA:
            return Has(named.field)
        if named.field.kind is not Kind.TRUTH:
            raise Misused(
                named.token,
                f"{named.written} stands alone; compare it, or say: has {named.written}",
            )
        return Compare(named.field, "==", True)


def _text(token: Token) -> str:
    return re.sub(r"\\(.)", r"\1", token[1:-1])


def _field(head: Token, names: list[str]) -> Field:
    known = str(head)
    if known in ("label", "runtime", "model") and not names:
        raise Misused(head, f"{known} of which name? Write {known}.NAME")
    if known == "model" and len(names) == 2 and names[1] in ("variant", "phase"):
        return Field(Of(names[1]), _model(head, names[0]))
    if len(names) > 1 or (names and known not in ("label", "runtime", "model", "isa")):
        written = ".".join([known, *names])
        raise Misused(head, f"no field {written[:80]!r}")
    if known == "isa" and names:
        return _flag(head, names[0])
    if known == "runtime":
        if not _PLAIN.fullmatch(names[0]):
            raise Misused(head, f"no runtime can be called {names[0][:40]!r}")
        return Field(Of.RUNTIME, names[0])
    if known == "model":
        return Field(Of.MODEL, _model(head, names[0]))
    if known in KINDS:
        return Field(Of.ITSELF, known)
    name = names[0] if names else known
    if not 0 < len(name) <= MAX_LABEL_CHARS or any(each in '"\\=' for each in name):
        raise Misused(head, f"no label can be called {name[:80]!r}")
    return Field(Of.LABEL, name)


def _model(head: Token, name: str) -> str:
    if not is_slug(name):
        raise Misused(head, f"no model can be called {name[:40]!r}")
    return name


def _flag(token: Token, name: str) -> Field:
    if not _PLAIN.fullmatch(name):
        raise Misused(token, f"no flag can be called {name[:40]!r}")
    return Field(Of.ISA, name)


def _fits(named: _Named, value: _Valued) -> None:
    kind = named.field.kind
    if kind is Kind.FLAGS:
        raise Misused(named.token, 'flags are asked for by "avx2" in isa, or isa.avx2')
    if kind is value.kind or (kind in _TEXTS and value.kind is Kind.TEXT):
        return
    hint = {
        Kind.AGE: "an age such as 10m",
        Kind.TEXT: f'a text: "{value.token}"' if value.kind is not Kind.TEXT else "a text",
        Kind.VERSION: 'a version in quotes such as "0.2.1"',
    }.get(kind, kind.value)
    raise Misused(value.token, f"{named.written} is compared with {hint}")


def _one_of(named: _Named, values: tuple[_Valued, ...], *, negated: bool) -> OneOf:
    for value in values:
        _fits(named, value)
    return OneOf(named.field, tuple(value.value for value in values), negated)


def _like(named: _Named, pattern: Token, *, negated: bool) -> Like:
    if named.field.kind not in _TEXTS:
        raise Misused(named.token, f"{named.written} is {named.field.kind.value}, not a text")
    return Like(named.field, _text(pattern), negated)
