from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.devices.sheet import SheetError, read_sheet, write_csv, write_json

KEYS = st.text(st.characters(exclude_categories=["C"], exclude_characters='"\\='), min_size=1)
VALUES = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=20)
FLEETS = st.lists(st.dictionaries(KEYS.map(lambda key: key.strip()[:9] or "k"), VALUES), max_size=4)


@given(FLEETS)
def test_what_is_written_is_read_again(fleet: list[dict[str, str]]) -> None:
    devices = [
        {"id": f"d-{n}", "profile": "p", "online": True, "labels": labels}
        for n, labels in enumerate(fleet)
    ]
    for text, form in ((write_csv(devices), "csv"), (write_json(devices), "json")):
        sheet = read_sheet(text.encode(), form)  # type: ignore[arg-type]
        assert sheet.problems == []
        assert [(row.id, row.applied({})) for row in sheet.rows] == [
            (device["id"], device["labels"]) for device in devices
        ]


def test_an_empty_cell_takes_a_label_away_and_no_column_leaves_it() -> None:
    (row,) = read_sheet(b"\xef\xbb\xbfid,label.a,label.b\r\nd-1,,x\r\n", "csv").rows
    assert row.applied({"a": "1", "c": "2"}) == {"b": "x", "c": "2"}
    assert row.line == 2


@pytest.mark.parametrize(
    ("data", "line", "problem"),
    [
        (b"", 1, "the file is empty"),
        (b"id,site\n", 1, "no column can be called 'site'; labels are label.NAME"),
        (b"name\n", 1, "no column 'id'"),
        (b"id,label.a,label.a\n", 1, "two columns are called 'label.a'"),
        (b"id\nd-1\n\xff\n", 3, "the file is not UTF-8"),
        (b'id\nd-1\n"d\n', 3, "no CSV"),
    ],
)
def test_what_is_no_table_is_named_with_its_line(data: bytes, line: int, problem: str) -> None:
    with pytest.raises(SheetError, match=problem) as found:
        read_sheet(data, "csv")
    assert found.value.line == line


@pytest.mark.parametrize(
    ("data", "line", "problem"),
    [
        ("{}", 1, "no JSON list of devices"),
        ("[\n{,", 2, "no JSON"),
        ('[\n{"id": "a", "labels": {}}\n{', 3, "expected ',' or ']'"),
        ("[" * 5000, 1, "no JSON"),
        ("[]\n[]", 1, "something follows the list"),
    ],
)
def test_what_is_no_list_is_named_with_its_line(data: str, line: int, problem: str) -> None:
    with pytest.raises(SheetError, match=problem) as found:
        read_sheet(data.encode(), "json")
    assert found.value.line == line


def test_objects_that_are_no_devices_are_named_with_their_lines() -> None:
    rows = [
        3,
        {"id": 3},
        {"id": "a"},
        {"id": "a", "labels": {"x": 1}},
        {"id": "a", "labels": {}, "lables": {}},
        {"id": "a", "labels": {"x": "\n"}},
    ]
    text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]"
    assert read_sheet(text.encode(), "json").problems == [
        (2, "no object"),
        (3, "no 'id'"),
        (4, "no 'labels' with texts as values"),
        (5, "no 'labels' with texts as values"),
        (6, "no field can be called 'lables'"),
        (7, "label x: a value has at most 200 characters, all printable"),
    ]
