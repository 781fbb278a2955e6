"""How logged events are written: lines for people, or one JSON object a line for machines.

Every room logs events by a template, `log.info("model.activated model=%s version=%d", …)`: a slug
with a dot, then `key=value` pairs, then perhaps `: %s` with a detail.  The JSON form takes keys
from the template and values from the arguments, so nothing is parsed out of rendered text: a value
may hold spaces, quotes or line feeds and stays one value, and numbers stay numbers.  A record of
another form, such as a library's, becomes `message`.  Neither form lets a value begin a new line.

    {"at": "2026-03-01T12:00:00.123+00:00", "level": "info", "logger": "skerry.update",
     "event": "model.activated", "model": "digits", "version": 3}

Called by entry points only.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import math
import re
import sys
from functools import lru_cache
from typing import IO, Final, Literal

LogFormat = Literal["text", "json"]

TEXT_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"
_CONVERSION: Final = r"%[-+ #0]?\d*(?:\.\d+)?[a-zA-Z]"
_TEMPLATE: Final = re.compile(
    rf"(?P<event>[a-z_]+(?:\.[a-z_]+)+)(?P<pairs>(?: [a-z_0-9]+=(?:{_CONVERSION}|[^%=:]+?))*)"
    rf"(?P<detail>: {_CONVERSION})?"
)
_PAIR: Final = re.compile(
    rf" (?P<key>[a-z_0-9]+)=(?P<value>{_CONVERSION}|[^%=]+?)(?= [a-z_0-9]+=|$)"
)
_BREAKS: Final = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_RESERVED: Final = frozenset({"at", "level", "logger", "event", "message", "exception"})


def configure(level: str, log_format: LogFormat, stream: IO[str] | None = None) -> None:
    """Write events of `level` and above to `stream`, standard error unless told otherwise."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines(TEXT_FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class TextLines(logging.Formatter):
    """Formats a record for people; only a traceback takes more than its line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the base's name)
        return _BREAKS.sub(lambda found: repr(found[0])[1:-1], super().formatMessage(record))


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object without line feeds."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(
                timespec="milliseconds"
            ),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        event = _event(record)
        line |= {"message": _text(record.getMessage())} if event is None else event
        if record.exc_info:
            line["exception"] = _text(self.formatException(record.exc_info))
        return json.dumps(line)


def _event(record: logging.LogRecord) -> dict[str, object] | None:
    """Event and fields; None when the record's template is of another form."""
    parts = _parts(str(record.msg))
    arguments = record.args if isinstance(record.args, tuple) else ()
    if parts is None:
        return None
    event, pairs = parts
    values = iter(arguments)
    fields: dict[str, object] = {"event": event}
    try:
        for key, constant in pairs:
            fields[key] = _plain(next(values)) if constant is None else constant
    except StopIteration:
        return None
    return fields if next(values, None) is None else None


@lru_cache(maxsize=256)
def _parts(template: str) -> tuple[str, tuple[tuple[str, str | None], ...]] | None:
    """Event, and each key with its constant value; None stands for the next argument."""
    match = _TEMPLATE.fullmatch(template)
    if match is None:
        return None
    pairs = [
        (f"{key}_" if key in _RESERVED else key, None if value.startswith("%") else value)
        for key, value in _PAIR.findall(match["pairs"])
    ]
    if match["detail"]:
        pairs.append(("detail", None))
    return match["event"], tuple(pairs)


def _plain(value: object) -> object:
    """A value that JSON knows, or its text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, bool | int | None) else _text(value)


def _text(value: object) -> str:
    """Without what no UTF-8 can hold, such as a file name of other bytes."""
    return str(value).encode("utf-8", "replace").decode()
