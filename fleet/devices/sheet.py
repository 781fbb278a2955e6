"""Tables of devices and their labels, as CSV and JSON: written, and read again with line numbers.

    id,profile,online,agent_version,label.site,label.rack
    edge-1,raspberry-pi-5,true,0.3.0,a,7

Reading changes labels only.  In CSV an empty cell of a label takes the label away, and a label
without a column stays; in JSON (a list of objects) `labels` says all labels that the device is to
have.  What else stands there describes the device and is passed over.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from edge_agent.wire.ids import is_slug

Form = Literal["csv", "json"]

MAX_SHEET_BYTES: Final = 16 << 20
MAX_SHEET_ROWS: Final = 100_000
MAX_LABELS: Final = 32

_PREFIX: Final = "label."
_DESCRIBED: Final = ("profile", "online", "revoked", "agent_version", "last_seen")
_KEY: Final = re.compile(r'[^"\\=\x00-\x1f]{1,64}')
_VALUE: Final = re.compile(r"[^\x00-\x1f]{0,200}")


class SheetError(ValueError):
    """It is no such table at all; `line` counts from 1."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}")
        self.line = line
        self.problem = problem


@dataclass(frozen=True, slots=True)
class SheetRow:
    """What a line wants of one device: labels to set, and to take away (None).

    Attributes:
        whole: the device is to have these labels and no others.
    """

    line: int
    id: str
    labels: Mapping[str, str | None]
    whole: bool = False

    def applied(self, labels: Mapping[str, str]) -> dict[str, str]:
        """The device's labels after it."""
        after = {} if self.whole else dict(labels)
        for key, value in self.labels.items():
            if value is None:
                after.pop(key, None)
            else:
                after[key] = value
        return after


@dataclass(slots=True)
class Sheet:
    """Rows that can be read, and (line, problem) of those that cannot."""

    rows: list[SheetRow] = field(default_factory=list)
    problems: list[tuple[int, str]] = field(default_factory=list)


def write_csv(devices: Sequence[Mapping[str, Any]]) -> str:
    """Devices (id, labels, and what describes them) as CSV, a column for each label."""
    keys = sorted({key for device in devices for key in device["labels"]})
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["id", *_DESCRIBED, *(_PREFIX + key for key in keys)])
    for device in devices:
        described = (_cell(device.get(name)) for name in _DESCRIBED)
        table.writerow([device["id"], *described, *(device["labels"].get(k, "") for k in keys)])
    return out.getvalue()


def write_json(devices: Iterable[Mapping[str, Any]]) -> str:
    """The same as JSON, a device a line."""
    rows = (
        json.dumps(
            {name: device.get(name) for name in ("id", *_DESCRIBED, "labels")}, ensure_ascii=False
        )
        for device in devices
    )
    return "[\n" + ",\n".join(rows) + "\n]\n"


def read_sheet(data: bytes, form: Form) -> Sheet:
    """Read a table.

    Raises:
        SheetError: it is too large, or no table.
    """
    if len(data) > MAX_SHEET_BYTES:
        raise SheetError(1, f"the file is larger than {MAX_SHEET_BYTES >> 20} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SheetError(line, "the file is not UTF-8") from error
    sheet = Sheet()
    seen: dict[str, int] = {}
    for line, found in _csv(text) if form == "csv" else _json(text):
        if len(sheet.rows) + len(sheet.problems) >= MAX_SHEET_ROWS:
            raise SheetError(line, f"more than {MAX_SHEET_ROWS} rows")
        if isinstance(found, str):
            sheet.problems.append((line, found))
        elif found.id in seen:
            problem = f"device {found.id!r} stands in line {seen[found.id]} too"
            sheet.problems.append((line, problem))
        else:
            seen[found.id] = line
            sheet.rows.append(found)
    return sheet


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _csv(text: str) -> Iterator[tuple[int, SheetRow | str]]:
    table = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        head = next(table, None)
        if head is None:
            raise SheetError(
                1, "the file is empty; its first line names the columns: id,label.site"
            )
        columns = [name if name.startswith(_PREFIX) else name.strip() for name in head]
        _check_columns(columns)
        line = table.line_num + 1
        for cells in table:
            if cells:
                yield line, _csv_row(line, columns, cells)
            line = table.line_num + 1
    except csv.Error as error:
        raise SheetError(table.line_num, f"no CSV: {error}") from error


def _check_columns(columns: list[str]) -> None:
    if "id" not in columns:
        raise SheetError(1, "no column 'id'; the first line names the columns: id,label.site")
    for number, name in enumerate(columns):
        if name in columns[:number]:
            raise SheetError(1, f"two columns are called {name[:80]!r}")
        label = name.removeprefix(_PREFIX) if name.startswith(_PREFIX) else None
        if label is None and name != "id" and name not in _DESCRIBED:
            raise SheetError(1, f"no column can be called {name[:80]!r}; labels are label.NAME")
        if label is not None and not _KEY.fullmatch(label):
            raise SheetError(1, f"no label can be called {label[:80]!r}")


def _csv_row(line: int, columns: list[str], cells: list[str]) -> SheetRow | str:
    if len(cells) != len(columns):
        return f"{len(cells)} cells, but {len(columns)} columns"
    found = dict(zip(columns, cells, strict=True))
    labels = {
        name.removeprefix(_PREFIX): value or None
        for name, value in found.items()
        if name.startswith(_PREFIX)
    }
    return _row(line, found["id"].strip(), labels, whole=False)


def _json(text: str) -> Iterator[tuple[int, SheetRow | str]]:
    decoder = json.JSONDecoder()
    place = _after_space(text, 0)
    line, counted = 1, 0

    def line_at(position: int) -> int:
        nonlocal line, counted
        line += text.count("\n", counted, position)
        counted = position
        return line

    if text[place : place + 1] != "[":
        raise SheetError(line_at(place), "no JSON list of devices")
    place = _after_space(text, place + 1)
    while text[place : place + 1] != "]":
        here = line_at(place)
        try:
            found, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "too deep"
            raise SheetError(here, f"no JSON: {reason}") from error
        yield here, _json_row(here, found)
        place = _after_space(text, place)
        if text[place : place + 1] == ",":
            place = _after_space(text, place + 1)
        elif text[place : place + 1] != "]":
            raise SheetError(line_at(place), "no JSON: expected ',' or ']'")
    if text[place + 1 :].strip():
        raise SheetError(line_at(place), "something follows the list")


def _after_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _json_row(line: int, found: object) -> SheetRow | str:
    if not isinstance(found, dict):
        return "no object"
    labels, device = found.get("labels"), found.get("id")
    if not isinstance(device, str):
        return "no 'id'"
    if not isinstance(labels, dict) or not all(isinstance(each, str) for each in labels.values()):
        return "no 'labels' with texts as values"
    if unknown := sorted(found.keys() - {"id", "labels", *_DESCRIBED}):
        return f"no field can be called {unknown[0][:80]!r}"
    return _row(line, device, labels, whole=True)


def _row(
    line: int, device: str, labels: Mapping[str, str | None], *, whole: bool
) -> SheetRow | str:
    if not is_slug(device):
        return f"{device[:80]!r} is no device's id"
    for key, value in labels.items():
        if not _KEY.fullmatch(key):
            return f"no label can be called {key[:80]!r}"
        if value is not None and not _VALUE.fullmatch(value):
            return f"label {key}: a value has at most 200 characters, all printable"
    return SheetRow(line, device, labels, whole)
