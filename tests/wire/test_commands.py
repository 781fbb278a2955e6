"""Commands on the wire: what a reader refuses before anything else looks at it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from edge_agent.wire.commands import (
    ARGUMENTS,
    COMMAND_NAMES,
    MAX_COMMAND_BYTES,
    PART_BYTES,
    Attachment,
    Command,
    SamplingArguments,
)
from edge_agent.wire.errors import MalformedMessage, MessageTooLarge


def test_every_command_has_arguments_that_refuse_what_they_do_not_know():
    assert set(ARGUMENTS) == set(COMMAND_NAMES)
    for kind in ARGUMENTS.values():
        with pytest.raises(ValidationError):
            kind.model_validate({"surprise": True})


@pytest.mark.parametrize("length", [1, PART_BYTES, PART_BYTES + 1])
def test_an_attachment_is_cut_into_as_many_parts_as_it_needs(length):
    parts = 1 if length <= PART_BYTES else 2
    told = {"media_type": "text/plain", "length": length, "sha256": "a" * 64}
    Attachment.model_validate({**told, "parts": parts})
    with pytest.raises(ValidationError, match="are not 3 parts"):
        Attachment.model_validate({**told, "parts": 3})


def test_a_command_beyond_its_bound_is_not_parsed():
    with pytest.raises(MessageTooLarge):
        Command.decode(b" " * (MAX_COMMAND_BYTES + 1), limit=MAX_COMMAND_BYTES)


@pytest.mark.parametrize("expires_at", ["NaN", "Infinity"])
def test_a_command_without_an_end_is_refused(expires_at):
    text = (
        f'{{"id": "c", "device": "d", "name": "logs", "issued_at": 0, "expires_at": {expires_at}}}'
    )
    with pytest.raises(MalformedMessage, match="expires_at"):
        Command.decode(text.encode())


def test_an_override_changes_something_or_ends_one():
    SamplingArguments(model="m", for_s=0)
    with pytest.raises(ValidationError, match="name uniform_rate"):
        SamplingArguments(model="m", for_s=60)
