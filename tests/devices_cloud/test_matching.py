"""The database means by a query what the pure evaluation means."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from cloud.db.engine import Sessions
from cloud.db.tables import Device, DeviceGroup, GroupMember
from cloud.devices.facts import facts_of
from cloud.devices.matching import where
from cloud.errors import UserError
from fleet.devices.query import parse
from tests.devices_cloud.fleet import NOW, device

TEXTS = st.sampled_from(
    ["", "a", "A", "b", "ab", "a%b", "a_b", "a[b", "a*b", "ä", "10", "9", "\\", 'q"t', "한", "a\nb"]
)
KEYS = st.sampled_from(["site", "Site", "rack no", "a.b", "x]", "in"])
VERSIONS = st.sampled_from(["", "0.9", "0.10", "0.10.0rc1", "1", "devel", "1.2.3.4.5"])
FLAGS = st.sampled_from(["avx2", "avx", "avx512_vnni", 'odd"flag'])
MODELS = st.sampled_from(["digits", "a-b"])
NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 10**30])


@st.composite
def devices(draw: st.DrawFn) -> Device:
    inventory = draw(
        st.just({})
        | st.fixed_dictionaries(
            {
                "machine": TEXTS,
                "cores": NUMBERS,
                "memory_mib": NUMBERS,
                "cpu_flags": st.lists(FLAGS, max_size=3),
                "runtimes": st.dictionaries(
                    st.sampled_from(["onnxruntime", "openvino"]), VERSIONS, max_size=2
                ),
            },
            optional={"board": TEXTS},
        )
    )
    models = st.dictionaries(
        MODELS,
        st.fixed_dictionaries(
            {"version": NUMBERS, "variant": TEXTS, "phase": st.sampled_from(["healthy", "failed"])}
        ),
        max_size=2,
    )
    reported = draw(
        st.just({}) | st.fixed_dictionaries({"agent_version": VERSIONS, "models": models})
    )
    return device(
        "",
        profile=draw(st.sampled_from(["raspberry-pi-5", "n100"])),
        labels=draw(st.dictionaries(KEYS, TEXTS, max_size=3)),
        inventory=inventory,
        reported=reported,
        online=draw(st.booleans()),
        revoked=draw(st.booleans()),
        last_seen=draw(st.sampled_from([0.0, NOW - 5, NOW - 60, NOW - 600])),
        enrolled_at=draw(st.sampled_from([NOW - 60, NOW - 86_400])),
    )


def _quoted(text: str) -> str:
    kept = text.replace("\n", "?")
    return '"' + kept.replace("\\", "\\\\").replace('"', '\\"') + '"'


TEXT_FIELDS = st.one_of(
    st.sampled_from(["id", "profile", "machine", "board", "site", "Site"]),
    KEYS.map(lambda key: f"label.{_quoted(key)}"),
    MODELS.flatmap(lambda name: st.sampled_from([f"model.{name}.variant", f"model.{name}.phase"])),
)
VERSION_FIELDS = st.sampled_from(["agent_version", "runtime.onnxruntime", "runtime.openvino"])
NUMBER_FIELDS = st.sampled_from(["cores", "memory_mib", "model.digits", "model.a-b"])
AGE_FIELDS = st.sampled_from(["last_seen", "enrolled"])
ORDER = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
NOT = st.sampled_from(["", "not "])


def _several(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(values, min_size=1, max_size=3).map(", ".join)


QUOTED = TEXTS.map(_quoted)
LITERAL_NUMBERS = st.sampled_from(["0", "2", "2.5", "-1"])
TESTS = st.one_of(
    st.builds("{} {} {}".format, TEXT_FIELDS, ORDER, QUOTED),
    st.builds("{} {}in ({})".format, TEXT_FIELDS, NOT, _several(QUOTED)),
    st.builds(
        "{} {}like {}".format,
        TEXT_FIELDS | VERSION_FIELDS,
        NOT,
        st.sampled_from(["*", "a*", "*b", "?", "a?b", "a[b", "*%*", "*_*", "", "A", "*\\\\*"]).map(
            lambda pattern: f'"{pattern}"'
        ),
    ),
    st.builds(
        "{} {} {}".format, VERSION_FIELDS, ORDER, st.sampled_from(['"0.9"', '"0.10.0"', '"1.2.3"'])
    ),
    st.builds("{} {} {}".format, NUMBER_FIELDS, ORDER, LITERAL_NUMBERS),
    st.builds("{} {}in ({})".format, NUMBER_FIELDS, NOT, _several(LITERAL_NUMBERS)),
    st.builds("{} {} {}".format, AGE_FIELDS, ORDER, st.sampled_from(["5s", "1m", "10m", "1d"])),
    st.builds("has {}".format, TEXT_FIELDS | NUMBER_FIELDS | VERSION_FIELDS | AGE_FIELDS),
    st.builds('"{}" {}in isa'.format, st.sampled_from(["avx2", "avx", "avx512_vnni"]), NOT),
    st.sampled_from(
        ["online", "not revoked", "online != true", "revoked in (false)", "has isa",
         'group("even")', 'group("on")', 'not group("both")'],
    ),
)  # fmt: skip
QUERIES = st.recursive(
    TESTS,
    lambda parts: st.one_of(
        parts.map("not ({})".format),
        st.lists(parts, min_size=2, max_size=3).map(" and ".join).map("({})".format),
        st.lists(parts, min_size=2, max_size=3).map(" or ".join).map("({})".format),
    ),
    max_leaves=6,
)


@pytest.fixture
def session(sessions: Sessions) -> Iterator[Session]:
    """A session whose work is thrown away, with three groups in it."""
    with sessions() as session:
        session.add_all(
            DeviceGroup(
                name=name, query=query, description="", created_by="", created_at=0, updated_at=0
            )
            for name, query in (
                ("even", ""),
                ("on", "online"),
                ("both", 'group("even") and group("on")'),
            )
        )
        session.flush()
        yield session
        session.rollback()


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(fleet=st.lists(devices(), min_size=1, max_size=6), texts=st.lists(QUERIES, max_size=8))
def test_database_and_pure_evaluation_agree(
    session: Session, fleet: list[Device], texts: list[str]
) -> None:
    session.execute(delete(GroupMember))
    session.execute(delete(Device))
    session.expire_all()
    for number, row in enumerate(fleet):
        row.id = f"d-{number}"
    session.add_all(fleet)
    session.flush()
    session.add_all(GroupMember(group="even", device=row.id) for row in fleet[::2])
    session.flush()
    facts = []
    for number, row in enumerate(fleet):
        groups = {"even"} if number % 2 == 0 else set()
        groups |= {"on"} if row.online else set()
        groups |= {"both"} if len(groups) == 2 else set()
        facts.append(facts_of(row, NOW, frozenset(groups)))
    for text in texts:
        query = parse(text)
        found = session.scalars(select(Device.id).where(where(session, query, NOW)))
        assert set(found) == {one.id for one in facts if query.matches(one)}, text
    for row in fleet:
        session.expunge(row)


def test_a_group_that_does_not_exist_is_named(session: Session) -> None:
    with pytest.raises(UserError, match="there is no group 'nobody'"):
        where(session, parse('online and group("nobody")'), NOW)
