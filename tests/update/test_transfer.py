"""Chunks over a line that loses, doubles, reorders, corrupts and stalls."""

from __future__ import annotations

import hashlib
import queue
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from cloud.publish import chunk_list
from edge_agent.update.errors import Interrupted, TransferFailed, TransferStalled
from edge_agent.update.transfer import Transfer
from edge_agent.wire.manifest import Encoding
from edge_agent.wire.messages import ChunkReply, ChunkRequest

CHUNK = 1024
DATA = random.Random(5).randbytes(CHUNK * 40 + 123)
FORM = Encoding(
    algo="raw",
    sha256=hashlib.sha256(DATA).hexdigest(),
    length=len(DATA),
    chunks_sha256=hashlib.sha256(chunk_list(DATA, CHUNK)).hexdigest(),
)

Line = Callable[[ChunkReply, bytes], list[tuple[ChunkReply, bytes]]]


class Port:
    """Answers at once, through `line`."""

    def __init__(self, line: Line = lambda reply, data: [(reply, data)]) -> None:
        self.replies: queue.Queue[tuple[ChunkReply, bytes]] = queue.Queue()
        self.line = line
        self.asked: list[int] = []
        self.largest_request = 0

    def request(self, request: ChunkRequest) -> None:
        bits = int(request.bitmap, 16)
        self.largest_request = max(self.largest_request, bits.bit_count())
        for index in (request.first + bit for bit in range(64) if bits >> bit & 1):
            self.asked.append(index)
            reply = ChunkReply(sha256=request.sha256, index=index)
            data = DATA[index * CHUNK : (index + 1) * CHUNK]
            for item in self.line(reply, data):
                self.replies.put(item)


def transfer(port: Port, directory: Path, **settings: float) -> Transfer:
    options = {"reply_timeout_s": 0.02, "stall_timeout_s": 0.5, "retry_cap": 3} | settings
    return Transfer(port, directory, **options)  # type: ignore[arg-type]


def get(port: Port, directory: Path, **settings: float) -> bytes:
    path = transfer(port, directory, **settings).download(FORM, CHUNK, chunk_list(DATA, CHUNK))
    return path.read_bytes()


def test_gets_every_chunk_once_within_the_window(tmp_path: Path) -> None:
    port = Port()
    assert get(port, tmp_path) == DATA
    assert sorted(port.asked) == list(range(41))
    assert port.largest_request <= 16


def test_survives_loss_doubling_reordering_and_replies_to_others(tmp_path: Path) -> None:
    rng = random.Random(1)
    held: list[tuple[ChunkReply, bytes]] = []

    def line(reply: ChunkReply, data: bytes) -> list[tuple[ChunkReply, bytes]]:
        held.append((reply, data))
        if rng.random() < 0.2:
            held.pop()  # lost
        if rng.random() < 0.3:
            held.append((reply.model_copy(update={"sha256": "0" * 64}), data))
        if rng.random() < 0.3:
            held.append((reply, data))
        if rng.random() < 0.1:
            held.append((reply.model_copy(update={"index": 9999}), data))
        rng.shuffle(held)
        out = held[:2]
        del held[:2]
        return out

    assert get(Port(line), tmp_path, stall_timeout_s=10.0, reply_timeout_s=0.05) == DATA


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data[:-1],
        lambda data: data + b"!",
        lambda data: b"",
    ],
    ids=["flipped", "short", "long", "empty"],
)
def test_a_chunk_that_is_never_right_fails_after_the_retry_cap(tmp_path: Path, spoil) -> None:
    def line(reply: ChunkReply, data: bytes) -> list[tuple[ChunkReply, bytes]]:
        return [(reply, spoil(data) if reply.index == 7 else data)]

    port = Port(line)
    with pytest.raises(TransferFailed) as failure:
        get(port, tmp_path)
    assert failure.value.reason == "chunk_corrupt"
    assert port.asked.count(7) == 4


@pytest.mark.parametrize(
    ("status", "reason"), [("not_found", "chunk_missing"), ("denied", "transfer_denied")]
)
def test_a_refusal_is_final_at_once(tmp_path: Path, status: str, reason: str) -> None:
    port = Port(lambda reply, data: [(reply.model_copy(update={"status": status}), b"")])
    with pytest.raises(TransferFailed) as failure:
        get(port, tmp_path)
    assert failure.value.reason == reason
    assert max(port.asked.count(index) for index in port.asked) == 1


def test_silence_ends_as_stalled(tmp_path: Path) -> None:
    with pytest.raises(TransferStalled):
        get(Port(lambda reply, data: []), tmp_path, stall_timeout_s=0.3)


def test_a_window_shrinks_when_replies_are_lost(tmp_path: Path) -> None:
    port = Port(lambda reply, data: [])
    with pytest.raises(TransferStalled):
        get(port, tmp_path, stall_timeout_s=0.8)
    first_window = 16
    assert len(port.asked) < 3 * first_window


def test_resumes_and_verifies_what_it_had(tmp_path: Path) -> None:
    def first_half(reply: ChunkReply, data: bytes) -> list[tuple[ChunkReply, bytes]]:
        return [(reply, data)] if reply.index < 20 else []

    with pytest.raises(TransferStalled):
        get(Port(first_half), tmp_path, stall_timeout_s=0.3)
    with (tmp_path / f"{FORM.sha256}.part").open("r+b") as part:  # a torn sector
        part.seek(5 * CHUNK)
        part.write(b"junk")
    port = Port()
    assert get(port, tmp_path) == DATA
    assert sorted(port.asked) == [5, *range(20, 41)]


def test_an_interruption_keeps_what_came(tmp_path: Path) -> None:
    port = Port()
    with pytest.raises(Interrupted):
        transfer(port, tmp_path).download(
            FORM, CHUNK, chunk_list(DATA, CHUNK), interrupted=lambda: len(port.asked) > 10
        )
    before = set(port.asked)
    port.asked.clear()
    assert get(port, tmp_path) == DATA
    assert not before & set(port.asked)


def test_a_chunk_list_of_a_wrong_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TransferFailed, match="wrong length"):
        transfer(Port(), tmp_path).download(FORM, CHUNK, chunk_list(DATA, CHUNK)[:-32])


def test_partial_files_of_other_bundles_are_removed(tmp_path: Path) -> None:
    for stem in ("a" * 64, "b" * 64):
        (tmp_path / f"{stem}.part").write_bytes(b"x")
        (tmp_path / f"{stem}.map").write_bytes(b"x")
    transfer(Port(), tmp_path).keep_only({"a" * 64})
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".map", ".part"]
    assert all(path.stem == "a" * 64 for path in tmp_path.iterdir())
