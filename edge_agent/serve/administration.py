"""Commands that the device's own operator gives over the administrative socket.

Which there are and what each must be told stands here; what they do is the composition root's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from pydantic import JsonValue

from edge_agent.serve.errors import BadRequest, NotOffered

Command = Callable[[Mapping[str, str]], Mapping[str, JsonValue]]
"""What the operator told → the answer.  Called in a thread.

Raises:
    Refused: it cannot be carried out as things are.
    BadRequest: what was told makes no sense.
"""

COMMANDS: Final[Mapping[str, tuple[str, ...]]] = {
    "pause": (),
    "resume": (),
    "install": ("directory",),
}
"""Commands about updates by name, each with the keys that its JSON object has, all strings."""

MAX_VALUE_CHARS: Final = 4096

_DECODER: Final = msgspec.json.Decoder(dict[str, str])


def prepared(commands: Mapping[str, Command], name: str, body: bytes) -> Callable[[], JsonValue]:
    """The command `name` with what its request told, ready to be called in a thread.

    Raises:
        BadRequest: the body is not what the command must be told.
        NotOffered: this server does not carry it out.
    """
    try:
        told = _DECODER.decode(body) if body else {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"{name}: the body is not valid: {error}") from None
    keys = COMMANDS[name]
    if set(told) != set(keys):
        wanted = ", ".join(keys) or "nothing"
        raise BadRequest(f"{name}: must be told {wanted}, and nothing else")
    if any(not 0 < len(value) <= MAX_VALUE_CHARS or "\0" in value for value in told.values()):
        raise BadRequest(f"{name}: a value is empty, too long, or holds a zero character")
    command = commands.get(name)
    if command is None:
        raise NotOffered(f"this agent takes no command {name!r}")
    return lambda: dict(command(told))
