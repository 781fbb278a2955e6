"""What can be asked of the API about commands to devices; see `fleet.client.calls`."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from pydantic import TypeAdapter

from fleet.client import command_schemas as schemas
from fleet.client.calls import Call

_PATH: Final = "/v1/commands"
_COMMAND: Final = TypeAdapter(schemas.CommandOut).validate_json
_PAGE: Final = TypeAdapter(schemas.CommandPage).validate_json
_BATCH: Final = TypeAdapter(schemas.CommandBatch).validate_json
_CANCELLED: Final = TypeAdapter(schemas.CommandsCancelled).validate_json


def _bytes(body: bytes) -> bytes:
    return body


def ask(request: schemas.CommandIn) -> Call[schemas.CommandBatch]:
    return Call(method="POST", path=_PATH, body=request, read=_BATCH, timeout_s=60.0)


def commands(
    *, device: str, state: str, batch: str, name: str, offset: int, limit: int
) -> Call[schemas.CommandPage]:
    filters = {"device": device, "state": state, "batch": batch, "name": name}
    params = [(key, value) for key, value in filters.items() if value]
    params += [("offset", str(offset)), ("limit", str(limit))]
    return Call(method="GET", path=_PATH, params=tuple(params), read=_PAGE)


def command(command_id: str) -> Call[schemas.CommandOut]:
    return Call(method="GET", path=_of(command_id), read=_COMMAND)


def attachment(command_id: str) -> Call[bytes]:
    path = f"{_of(command_id)}/attachment"
    return Call(method="GET", path=path, read=_bytes, timeout_s=120.0)


def cancel(command_id: str) -> Call[schemas.CommandOut]:
    return Call(method="POST", path=f"{_of(command_id)}/cancel", read=_COMMAND)


def cancel_batch(batch: str) -> Call[schemas.CommandsCancelled]:
    path = f"{_PATH}/batches/{_quoted(batch)}/cancel"
    return Call(method="POST", path=path, read=_CANCELLED)


def _of(command_id: str) -> str:
    return f"{_PATH}/{_quoted(command_id)}"


def _quoted(part: str) -> str:
    return quote(part, safe="")
