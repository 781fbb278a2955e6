"""The language in which people say which devices they mean.

    profile == "raspberry-pi-5" and site in ("a", "b") and model.digits < 3

Fields: id, profile, online, revoked, last_seen and enrolled (ages: 90s, 10m, 2h, 7d, 4w),
agent_version, machine, board, cores, memory_mib, isa, runtime.NAME, model.NAME (the version that
is installed), model.NAME.variant, model.NAME.phase, label.NAME; a bare name that is no field is a
label.  A name with other characters is quoted: label."rack no".

Tests: == != < <= > >=, in ("a", "b"), not in (…), like "edge-*", not like "…", has FIELD,
"avx2" in isa, group("name"), online; joined by and, or, not and parentheses.

Rules:
    * What a device does not have makes a test false, also `!=` and `not in`; `not` turns it round.
    * Versions are ordered by their numbers: "0.10" is after "0.9".
    * A query is bounded in length and depth, so reading and answering it is bounded too.

Errors: QueryError (user): at which column, what was found, what was expected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lark import Lark, UnexpectedCharacters, UnexpectedToken

from fleet.devices.conditions import Condition, depth, groups_in
from fleet.devices.facts import DeviceFacts
from fleet.devices.meaning import Meaning, Misused

MAX_QUERY_CHARS: Final = 2000
MAX_DEPTH: Final = 24

_GRAMMAR: Final = r"""
?start: any
?any: all ("or" all)*
?all: one ("and" one)*
?one: "not" one -> negate
    | test
    | "(" any ")"
test: field OP value                   -> compare
    | field "in" values                -> one_of
    | field "not" "in" values          -> none_of
    | field _like STRING               -> like
    | field "not" _like STRING         -> unlike
    | STRING "in" field                -> flag
    | STRING "not" "in" field          -> no_flag
    | "has" field                      -> has
    | "group" "(" STRING ")"           -> in_group
    | field                            -> truth
_like: "like" | "matches"
field: NAME ("." (NAME | STRING))*
values: "(" value ("," value)* ","? ")"
value: STRING | NUMBER | AGE | TRUE | FALSE
TRUE: "true"
FALSE: "false"
OP: "==" | "!=" | "<=" | ">=" | "<" | ">"
AGE.2: /[0-9]{1,9}(\.[0-9]{1,6})?[smhdw](?![A-Za-z0-9_])/
NUMBER: /-?[0-9]{1,15}(\.[0-9]{1,6})?(?![A-Za-z0-9_.])/
NAME: /[A-Za-z_][A-Za-z0-9_-]*/
STRING: /"(?:[^"\\\x00-\x1f]|\\["\\])*"|'(?:[^'\\\x00-\x1f]|\\['\\])*'/
%ignore /[ \t\r\n]+/
"""

_SAID: Final[dict[str, str]] = {
    "NAME": "a field",
    "STRING": 'a text such as "a"',
    "NUMBER": "a number",
    "AGE": "an age such as 10m",
    "OP": "==, !=, <, <=, >, >=",
    "LPAR": "'('",
    "RPAR": "')'",
    "COMMA": "','",
    "DOT": "'.'",
    "$END": "the end",
}
"""How the grammar's terminals are called before people; the others are words, and quoted."""

# basic: a word of the language is one everywhere, so that a mistake is found where it stands
_PARSER: Final = Lark(_GRAMMAR, parser="lalr", lexer="basic", transformer=Meaning())


class QueryError(ValueError):
    """A query that does not parse.  Its text is one line.

    Attributes:
        text: the query.
        position: index in `text` of what is wrong; its length when something lacks at the end.
        reason: what is wrong and what was expected, without the place.
    """

    def __init__(self, text: str, position: int, reason: str) -> None:
        super().__init__(f"query, column {position + 1}: {reason}")
        self.text = text
        self.position = position
        self.reason = reason

    def pointed(self) -> str:
        """Two lines: the query about the place, and a caret under it."""
        line = "".join(each if each.isprintable() else " " for each in self.text)
        start = max(0, self.position - 60)
        shown = line[start : self.position + 40]
        return f"{shown}\n{' ' * (self.position - start)}^"


@dataclass(frozen=True, slots=True)
class Query:
    """A query that parsed; equal to another with the same meaning."""

    text: str
    condition: Condition

    def matches(self, device: DeviceFacts) -> bool:
        """Whether the device is meant.  Pure."""
        return self.condition.holds(device)

    @property
    def groups(self) -> frozenset[str]:
        """Names of the groups that the query asks for."""
        return groups_in(self.condition)


def parse(text: str) -> Query:
    """Read a query.

    Raises:
        QueryError: it does not parse, means nothing, is empty, too long or too deep.
    """
    if not text.strip():
        raise QueryError(text, 0, 'the query is empty; say which devices, such as site == "a"')
    if len(text) > MAX_QUERY_CHARS:
        raise QueryError(
            text[:MAX_QUERY_CHARS], MAX_QUERY_CHARS,
            f"the query has {len(text)} characters; the longest allowed is {MAX_QUERY_CHARS}",
        )  # fmt: skip
    try:
        condition: Condition = _PARSER.parse(text)  # type: ignore[assignment]  # by the transformer
    except UnexpectedCharacters as error:
        position = error.pos_in_stream or 0
        raise QueryError(text, position, _character(text[position])) from error
    except UnexpectedToken as error:
        token = error.token
        position = len(text.rstrip()) if token.type == "$END" else token.start_pos or 0
        found = "the end" if token.type == "$END" else repr(str(token)[:40])
        allowed = _expected(error.accepts or error.expected)
        raise QueryError(text, position, f"found {found}, expected {allowed}") from error
    except Misused as error:
        raise QueryError(text, error.token.start_pos or 0, str(error)) from error
    if depth(condition) > MAX_DEPTH:
        raise QueryError(text, 0, f"the query nests deeper than {MAX_DEPTH} levels")
    return Query(text, condition)


def _character(found: str) -> str:
    """Why no word begins with the character `found`."""
    if found in "\"'":
        return f"a text that is not closed by {found}"
    if found == "=":
        return "found '=', expected '=='"
    if found == "&":
        return "found '&', expected 'and'"
    if found == "|":
        return "found '|', expected 'or'"
    if found in "“”„‘’":
        return f"found {found!r}, expected a straight quote"
    if found.isdigit() or found == "-":
        return "a number or an age that cannot be read; ages look like 90s, 10m, 2h, 7d, 4w"
    return f"found {found!r}, which means nothing here"


def _expected(terminals: set[str]) -> str:
    said = sorted({_SAID.get(name, f"'{name.lower()}'") for name in terminals})
    if len(said) < 2:
        return "".join(said) or "something else"
    return f"{', '.join(said[:-1])} or {said[-1]}"
