"""A family's members: written down, or the points of a grid."""

from __future__ import annotations

import pytest
from pydantic import JsonValue, ValidationError

from optimizer.family import MAX_MEMBERS, Member, ModelFamily, grid


def family(**fields: object) -> ModelFamily:
    return ModelFamily.model_validate({"build": "family:build", **fields})


def test_members_come_as_they_are_written_then_every_point_of_the_search() -> None:
    ours = family(
        members={"tiny": {"width": 4}},
        search={"width": [8, 16], "depth": [2, 3], "dropout": 0.1},
    )
    assert [member.name for member in ours.all()] == [
        "tiny", "width8-depth2", "width8-depth3", "width16-depth2", "width16-depth3",
    ]  # fmt: skip
    assert ours.params("width16-depth2") == {"width": 16, "depth": 2, "dropout": 0.1}
    assert ours.params("tiny") == {"width": 4}


@pytest.mark.parametrize(
    ("search", "names"),
    [
        ({"rate": [0.5, 1]}, ["rate0p5", "rate1"]),
        ({"shift": [-1, 1]}, ["shiftm1", "shift1"]),
        ({"base_width": [1, 2]}, ["base-width1", "base-width2"]),
        ({"block": ["Basic", "Bottle Neck"]}, ["blockbasic", "blockbottle-neck"]),
        ({"wide": [True, False]}, ["widetrue", "widefalse"]),
    ],
)
def test_names_are_made_of_what_varies(search: dict[str, JsonValue], names: list[str]) -> None:
    assert [member.name for member in grid(search)] == names


def test_a_list_as_a_value_stands_in_a_list() -> None:
    assert grid({"sizes": [[1, 2], [3]]}) == (
        Member("sizes1-2", {"sizes": [1, 2]}),
        Member("sizes3", {"sizes": [3]}),
    )


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({}, "a family needs members, or a search over parameters"),
        ({"search": {"width": []}}, "'width' has no values"),
        ({"search": {"width": 3}}, "no parameter has several values"),
        ({"search": {"width": list(range(65))}}, "65 combinations are more than the 64"),
        ({"search": {"a": ["x y", "x-y"]}}, "two combinations are named 'ax-y'"),
        ({"search": {"a": ["x" * 70, "y"]}}, "cannot be the name of a member"),
        ({"search": {"a b": [1, 2]}}, "String should match pattern"),
        (
            {"members": {"w1": {}}, "search": {"w": [1, 2]}},
            "'w1' is a member and a point of the search",
        ),
        (
            {"members": {"m": {}}, "search": {"w": list(range(MAX_MEMBERS))}},
            "65 members are more than the 64 that are allowed",
        ),
    ],
)
def test_a_family_that_cannot_be_is_refused(fields: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        family(**fields)
