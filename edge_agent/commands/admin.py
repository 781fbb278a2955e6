"""Talking to the running agent over its administrative socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from edge_agent.commands.errors import CommandRefused, NotRunning

TIMEOUT_S: Final = 5.0


def status(directory: Path) -> dict[str, Any]:
    """What the running agent says of itself.

    Raises:
        NotRunning: nobody answers, or not with a status.
    """
    code, answer = _ask(directory, "GET", "/status", None)
    if code != 200:
        raise _not_running(directory)
    return answer


def order(directory: Path, command: str, told: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Have the running agent carry out a command about updates.

    Raises:
        NotRunning: nobody answers.
        CommandRefused: it does not do it, and says why.
    """
    code, answer = _ask(directory, "POST", f"/update/{command}", told or {})
    if code != 200:
        raise CommandRefused(str(answer.get("error", f"the agent answered {code}"))[:500])
    return answer


def _ask(
    directory: Path, method: str, path: str, told: Mapping[str, str] | None
) -> tuple[int, dict[str, Any]]:
    try:
        about = json.loads((directory / "run" / "agent.json").read_bytes())
        return _exchange(str(about["unix_socket"]), method, path, told)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_running(directory) from error


def _exchange(
    address: str, method: str, path: str, told: Mapping[str, str] | None
) -> tuple[int, dict[str, Any]]:
    body = b"" if told is None else json.dumps(dict(told)).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    if told is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(TIMEOUT_S)
        line.connect(address)
        line.sendall(head.encode() + b"\r\n" + body)
        data = b""
        while part := line.recv(65536):
            data += part
    answer_head, _, answer_body = data.partition(b"\r\n\r\n")
    answer = json.loads(answer_body)
    if not isinstance(answer, dict):
        raise ValueError("the answer is no JSON object")
    return int(answer_head.split(b" ", 2)[1]), answer


def _not_running(directory: Path) -> NotRunning:
    return NotRunning(
        f"{directory}: no agent runs here; start one with 'skerry-agent run --dir {directory}'"
    )
