"""Chunk replies go to whoever asked for their blob."""

from __future__ import annotations

from edge_agent.link.chunks import MqttChunkPort
from edge_agent.wire import topics
from edge_agent.wire.base import pack_frame
from edge_agent.wire.messages import ChunkReply, ChunkRequest

OURS, THEIRS = "a" * 64, "b" * 64


class Line:
    """The part of `Link` that a chunk port needs, without a broker."""

    def __init__(self) -> None:
        self.posted: list[bytes] = []

    def subscribe(self, topic, handler) -> None:
        assert topic == topics.chunk_reply("cam-1")
        self.reply = handler

    def post(self, topic: str, payload: bytes) -> None:
        self.posted.append(payload)

    def answer(self, sha256: str) -> None:
        self.reply(pack_frame(ChunkReply(sha256=sha256, index=0), b"chunk"))


def ask(sha256: str) -> ChunkRequest:
    return ChunkRequest(sha256=sha256, first=0, bitmap="1", chunk_bytes=65536)


def test_two_downloads_at_the_same_time_get_their_own_replies():
    line = Line()
    port = MqttChunkPort(line, "cam-1")
    beside = port.beside()
    assert port.request(ask(OURS)) and beside.request(ask(THEIRS))
    assert len(line.posted) == 2
    line.answer(OURS)
    line.answer(THEIRS)
    assert [port.replies.get_nowait()[0].sha256] == [OURS]
    assert [beside.replies.get_nowait()[0].sha256] == [THEIRS]
    assert port.replies.empty() and beside.replies.empty()


def test_two_downloads_of_one_blob_both_get_it():
    line = Line()
    port = MqttChunkPort(line, "cam-1")
    beside = port.beside()
    port.request(ask(OURS))
    beside.request(ask(OURS))
    line.answer(OURS)
    assert not port.replies.empty() and not beside.replies.empty()


def test_what_nobody_asked_for_beside_goes_the_usual_way():
    line = Line()
    port = MqttChunkPort(line, "cam-1")
    beside = port.beside()
    line.answer(OURS)
    assert not port.replies.empty() and beside.replies.empty()
