from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.devices.facts import DeviceFacts, ModelFacts, version_key
from fleet.devices.query import MAX_QUERY_CHARS, QueryError, parse

PI = DeviceFacts(
    id="edge-1",
    profile="raspberry-pi-5",
    online=True,
    last_seen_s=30.0,
    enrolled_s=86_400.0 * 3,
    agent_version="0.10.1",
    machine="aarch64",
    cores=4,
    memory_mib=8000,
    isa=frozenset({"asimd", "asimddp"}),
    runtimes={"onnxruntime": "1.20.1"},
    labels={"site": "a", "rack no": "7", "in": "x"},
    models={"digits": ModelFacts(2, "large/ort-int8", "healthy")},
    groups=frozenset({"lab"}),
)


@pytest.mark.parametrize(
    "text",
    [
        'profile == "raspberry-pi-5" and site in ("a", "b") and model.digits < 3',
        "profile == 'raspberry-pi-5'",
        'label.site == "a" and label."rack no" == "7" and label."in" == "x"',
        'site not in ("b", "c",) and not site == "b"',
        'id like "edge-?" and id matches "*-1" and id not like "Edge-*"',
        'agent_version > "0.9" and agent_version == "0.10.1" and runtime.onnxruntime >= "1.20"',
        "last_seen < 1m and enrolled >= 3d and enrolled < 0.5w",
        '"asimd" in isa and isa.asimddp and "avx2" not in isa and has isa',
        "cores >= 4 and memory_mib != 4000 and online and not revoked and online == true",
        'model.digits.variant like "large/*" and model.digits.phase == "healthy"',
        'group("lab") and not group("field")',
        "has model.digits and has site and has runtime.onnxruntime and not has model.other",
        'cores == 1 or cores == 2 and online or ((machine == "aarch64"))',
    ],
)
def test_query_that_holds(text: str) -> None:
    assert parse(text).matches(PI)


@pytest.mark.parametrize(
    "text",
    [
        'floor == "1"', 'floor != "1"', 'floor not in ("1",)', 'floor not like "x*"', "has floor",
        "model.other < 3", "model.other != 3", 'runtime.tensorrt != "1"', 'board == ""',
        'model.other.phase != "healthy"',
    ],
)  # fmt: skip
def test_what_a_device_lacks_makes_a_test_false_and_not_turns_it(text: str) -> None:
    assert not parse(text).matches(PI)
    assert parse(f"not ({text})").matches(PI)


def test_and_binds_closer_than_or() -> None:
    assert parse('online or revoked and site == "b"').matches(PI)
    assert not parse('(online or revoked) and site == "b"').matches(PI)


@pytest.mark.parametrize(
    ("text", "column", "reason"),
    [
        ("", 1, 'the query is empty; say which devices, such as site == "a"'),
        ('site = "a"', 6, "found '=', expected '=='"),
        ('site in ("a"', 13, "found the end, expected ')' or ','"),
        ('site == "a', 9, 'a text that is not closed by "'),
        (
            "online and",
            11,
            "found the end, expected '(', 'group', 'has', 'not', a field or a text such as \"a\"",
        ),
        ('online AND site == "a"', 8, None),
        ("online & revoked", 8, "found '&', expected 'and'"),
        ("site == “a”", 9, "found '“', expected a straight quote"),
        ('cores == "4"', 10, "cores is compared with a number"),
        ("site == 3", 9, 'site is compared with a text: "3"'),
        ("last_seen < 10", 13, "last_seen is compared with an age such as 10m"),
        (
            "last_seen < 10min",
            13,
            "a number or an age that cannot be read; ages look like 90s, 10m, 2h, 7d, 4w",
        ),
        ("online < true", 8, "online is true or false: expected == or !="),
        ("cores", 1, "cores stands alone; compare it, or say: has cores"),
        ("online and cores like 'a'", 12, "cores is a number, not a text"),
        ("model < 3", 1, "model of which name? Write model.NAME"),
        ('profile.x == "a"', 1, "no field 'profile.x'"),
        ("model.UPPER == 1", 1, "no model can be called 'UPPER'"),
        ('isa == "avx2"', 1, 'flags are asked for by "avx2" in isa, or isa.avx2'),
        ('"x" in site', 8, 'site is no set; only isa is: "avx2" in isa'),
        ('agent_version < "new"', 17, 'expected a version such as "0.2.1"'),
        ('group("Nope!")', 7, "expected a group's name: lower-case letters, digits and '-'"),
        ("not " * 30 + "online", 1, "the query nests deeper than 24 levels"),
        (
            "(" * 900 + "online" + ")" * 899,
            1806,
            None,
        ),
        ('id == "\x00"', 7, None),
    ],
)
def test_query_that_does_not_parse_says_where_and_why(
    text: str, column: int, reason: str | None
) -> None:
    with pytest.raises(QueryError) as found:
        parse(text)
    assert (found.value.position + 1, found.value.reason) == (column, reason or found.value.reason)
    assert "\n" not in str(found.value)
    assert f"column {column}:" in str(found.value)


def test_the_caret_stands_under_the_place_also_in_a_long_query() -> None:
    with pytest.raises(QueryError) as found:
        parse('site\n= "a"')
    assert found.value.pointed() == 'site = "a"\n     ^'
    with pytest.raises(QueryError) as found:
        parse('site == "a" or ' * 20 + "= 3")
    shown, caret = found.value.pointed().split("\n")
    assert shown[caret.index("^") :].startswith("= 3")


def test_query_that_is_too_long_is_not_read() -> None:
    with pytest.raises(QueryError, match=f"longest allowed is {MAX_QUERY_CHARS}"):
        parse("online or " * 1000 + "online")


def test_query_as_long_and_wide_as_allowed_is_answered() -> None:
    text = " or ".join(['x == "1"'] * 160)
    assert len(text) <= MAX_QUERY_CHARS
    assert not parse(text).matches(PI)


@given(st.text(max_size=60))
def test_no_text_raises_anything_but_a_query_error(text: str) -> None:
    try:
        parse(text)
    except QueryError as error:
        assert 0 <= error.position <= len(text)


def test_versions_are_ordered_by_their_numbers() -> None:
    assert version_key("0.10") == (0, 10, 0, 0)
    assert version_key("1.2.3rc1+cpu") == (1, 2, 3, 0)
    assert version_key("devel") is None
