"""Frames and messages: what goes in comes out, and what is wrong is refused before it is parsed."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.wire.base import MAX_FRAME_HEADER_BYTES, MAX_MESSAGE_BYTES, pack_frame, unpack_frame
from edge_agent.wire.errors import MalformedMessage, MessageTooLarge, UnknownTopic, WireError
from edge_agent.wire.messages import Ack, Desired, UplinkHeader
from edge_agent.wire.topics import ack, parse, shared, state, uplink


@given(st.binary(max_size=2000), st.integers(1, 2**60))
def test_a_frame_comes_back_as_it_was(payload, seq):
    header = UplinkHeader(stream="s", seq=seq, created_at=1.5)
    again, body = unpack_frame(pack_frame(header, payload), UplinkHeader)
    assert again == header
    assert bytes(body) == payload


@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_a_wire_error(data):
    with contextlib.suppress(WireError):
        unpack_frame(data, UplinkHeader)


def test_sizes_are_checked_before_parsing():
    with pytest.raises(MessageTooLarge):
        unpack_frame(b"\0" * (MAX_MESSAGE_BYTES + 1), UplinkHeader)
    with pytest.raises(MessageTooLarge):
        unpack_frame((MAX_FRAME_HEADER_BYTES + 1).to_bytes(4, "little") + b"{}", UplinkHeader)
    with pytest.raises(MessageTooLarge):
        Ack.decode(b" " * (MAX_MESSAGE_BYTES + 1))
    with pytest.raises(MalformedMessage):
        unpack_frame(b"\x05\0\0\0{}", UplinkHeader)


def test_unknown_fields_are_kept_and_wrong_ones_named_without_their_value():
    desired = Desired.decode(b'{"version": 1, "models": {}, "from_the_future": [1]}')
    assert b'"from_the_future":[1]' in desired.encode()
    with pytest.raises(MalformedMessage, match="version") as caught:
        Desired.decode(b'{"version": "secret-value", "models": {}}')
    assert "secret-value" not in str(caught.value)


@pytest.mark.parametrize("topic", [state("cam-1"), ack("cam-1"), uplink("cam-1", "sample")])
def test_a_topic_gives_back_its_device(topic):
    assert parse(topic).device == "cam-1"
    assert topic.endswith(parse(topic).channel)


@pytest.mark.parametrize(
    "topic",
    ["", "skerry/v1/d", "skerry/v1/d/+/state", "skerry/v1/d//state", "skerry/v2/d/a/state",
     "skerry/v1/d/A/state", "skerry/v1/d/a", shared("g", state("a"))],
)  # fmt: skip
def test_a_topic_outside_the_contract_is_refused(topic):
    with pytest.raises(UnknownTopic):
        parse(topic)
