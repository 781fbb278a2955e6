"""Logged events: fields come from the template, whatever the values hold."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.logs import JsonLines, TextLines, configure

ROOT = Path(__file__).resolve().parents[2]


def line(template: str, *values: object, exc_info: object = None) -> dict[str, object]:
    record = logging.LogRecord("skerry.x", logging.INFO, "", 0, template, values, exc_info)  # type: ignore[arg-type]
    text = JsonLines().format(record)
    assert "\n" not in text
    fields: dict[str, object] = json.loads(text)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", str(fields.pop("at")))
    assert (fields.pop("level"), fields.pop("logger")) == ("info", "skerry.x")
    return fields


@pytest.mark.parametrize(
    ("template", "values", "fields"),
    [
        ("model.activated model=%s version=%d", ("a b=c", 3), {"model": "a b=c", "version": 3}),
        ("link.chunk_dropped cause=queue full", (), {"cause": "queue full"}),
        ("twin.not_published", (), {}),
        (
            "update.ended model=%s reason=%s: %s",
            ("m", "r", "two\nlines, x=1"),
            {"model": "m", "reason": "r", "detail": "two\nlines, x=1"},
        ),
        ("measure.done p99_ms=%.3f qps=%.1f", (float("nan"), 2.5), {"p99_ms": None, "qps": 2.5}),
        ("file.lost path=%s", (Path("/a"),), {"path": "/a"}),
        ("file.lost path=%s", ("\udc80",), {"path": "?"}),
        ("a.b level=%s event=%s", ("x", "y"), {"level_": "x", "event_": "y"}),
    ],
)
def test_keys_come_from_the_template_and_values_stay_whole(template, values, fields):
    assert line(template, *values) == {"event": template.split()[0], **fields}


@pytest.mark.parametrize(
    ("template", "values", "message"),
    [
        ("Task was destroyed but it is pending!", (), "Task was destroyed but it is pending!"),
        ("got %s from %s", ("1", "2"), "got 1 from 2"),
        ("100% sure", (), "100% sure"),
        ("a.b c=%(d)s", ({"d": 1},), "a.b c=1"),
    ],
)
def test_a_record_of_another_form_is_a_message(template, values, message):
    assert line(template, *values) == {"message": message}


def test_an_exception_stays_in_its_line():
    try:
        raise ValueError("no\nway")
    except ValueError as error:
        fields = line("request.failed", exc_info=(type(error), error, error.__traceback__))
    assert fields["event"] == "request.failed"
    assert "ValueError: no\nway" in str(fields["exception"])


def test_a_value_cannot_begin_a_line_of_its_own_in_the_text_form():
    record = logging.LogRecord("x", logging.INFO, "", 0, "a.b c=%s", ("1\r\nfake\u2028",), None)
    assert TextLines("%(message)s").format(record) == "a.b c=1\\r\\nfake\\u2028"


def test_every_event_that_the_agent_logs_has_the_form():
    calls = re.compile(r'log\.(?:debug|info|warning|error|exception)\(\s*"([^"]+)"')
    templates = {
        (path.name, template)
        for path in (ROOT / "edge_agent").rglob("*.py")
        for template in calls.findall(path.read_text())
    }
    assert len(templates) > 30
    unformed = []
    for name, template in templates:
        values = tuple(
            "v" if each == "s" else 1 for each in re.findall(r"%[.\d]*([a-z])", template)
        )
        if "event" not in line(template, *values):
            unformed.append((name, template))
    assert unformed == []


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logging.getLogger("skerry").setLevel(logging.NOTSET)  # as in an agent
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)  # loggers remember what they asked, until a level is set


def test_configuring_sets_level_and_form(root_logger):
    stream = io.StringIO()
    configure("warning", "json", stream)
    logging.getLogger("skerry.x").info("a.b")
    logging.getLogger("skerry.x").warning("c.d n=%d", 1)
    [only] = stream.getvalue().splitlines()
    assert json.loads(only)["event"] == "c.d"
    configure("info", "text", stream)
    logging.getLogger("skerry.x").info("e.f n=%d", 2)
    assert stream.getvalue().splitlines()[-1].endswith(" INFO skerry.x e.f n=2")
