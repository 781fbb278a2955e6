"""MQTT 5 packets: cut anywhere, refused when they are none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.simulate import mqtt5
from fleet.simulate.mqtt5 import BadPacket, Connack, Puback, Publish, Reader, Will

CONNACK = b"\x20\x13\x01\x00\x10\x22\x00\x0a\x21\x00\x64\x13\x00\x1e\x12\x00\x04auto"
"""Session present, success; topic alias maximum 10, receive maximum 100, keep-alive 30, a name."""


def packets(data: bytes) -> list[mqtt5.Packet]:
    return list(Reader().feed(data))


def test_what_the_broker_grants_is_read_from_its_properties() -> None:
    assert packets(CONNACK) == [Connack(0, True, 100, 30)]
    assert packets(b"\x20\x03\x00\x87\x00") == [Connack(0x87, False, 0xFFFF, None)]


def test_a_message_is_read_back_as_it_was_written() -> None:
    long = b"x" * 70_000
    for mid, payload in ((0, b""), (7, b"hello"), (65535, long)):
        data = mqtt5.publish("skerry/v1/d/é/up", payload, mid=mid, retain=mid == 7)
        assert packets(data) == [Publish("skerry/v1/d/é/up", payload, mid, mid == 7)]


def test_an_acknowledgement_without_a_reason_is_a_success() -> None:
    assert packets(mqtt5.puback(300)) == [Puback(300, 0)]
    assert packets(b"\x40\x04\x01\x2c\x87\x00") == [Puback(300, 0x87)]


@given(st.lists(st.integers(1, 400), max_size=20))
def test_packets_come_out_whole_however_the_stream_is_cut(cuts: list[int]) -> None:
    sent = [mqtt5.publish(f"t/{n}", b"p" * n * 30, mid=n) for n in range(1, 8)]
    stream = CONNACK + b"".join(sent)
    reader, found, start = Reader(), [], 0
    for cut in [*cuts, len(stream)]:
        found += reader.feed(stream[start : start + cut])
        start += cut
    assert found == packets(CONNACK) + [p for each in sent for p in packets(each)]


@pytest.mark.parametrize(
    "data",
    [
        b"\x10\x00",  # a CONNECT, to a client
        b"\x30\xff\xff\xff\xff\x01",  # a length of five bytes
        b"\x30\xff\xff\xff\x7f",  # 256 MiB
        b"\x36\x06\x00\x01t\x00\x01\x00",  # QoS 3
        b"\x30\x03\x00\x09t",  # a topic beyond the packet
        b"\x20\x05\x00\x00\x02\x7f\x00",  # an unknown property
        b"\x40\x01\x00",  # half a number
    ],
)
def test_what_is_no_mqtt_is_refused(data: bytes) -> None:
    with pytest.raises(BadPacket):
        packets(data)


@given(st.binary(max_size=300))
def test_no_bytes_make_the_reader_fail_otherwise(data: bytes) -> None:
    try:
        packets(data)
    except BadPacket:
        return


def test_a_connect_carries_will_and_session_expiry() -> None:
    will = Will("skerry/v1/d/a/state", b"gone", delay_s=20)
    data = mqtt5.connect("a", keepalive_s=60, session_expiry_s=3600, will=will)
    assert data[0] == 0x10
    body = data[2:]
    assert body[:9] == b"\x00\x04MQTT\x05\x2c\x00"  # will, QoS 1, retained; no clean start
    assert b"\x05\x11\x00\x00\x0e\x10" in body
    assert b"\x05\x18\x00\x00\x00\x14\x00\x13skerry/v1/d/a/state\x00\x04gone" in body
