"""Chunks over a line that loses, doubles, reorders, corrupts, floods and stalls."""

from __future__ import annotations

import hashlib
import queue
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from cloud.publish import chunk_list
from edge_agent.device.config import AgentSettings
from edge_agent.update.errors import Interrupted, TransferFailed, TransferStalled
from edge_agent.update.transfer import Pace, Transfer
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


def test_attack_17_survives_loss_doubling_reordering_and_replies_to_others(tmp_path: Path) -> None:
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
def test_attack_17_a_chunk_that_is_never_right_fails_after_the_retry_cap(
    tmp_path: Path, spoil
) -> None:
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
def test_attack_19_a_refusal_is_final_at_once(tmp_path: Path, status: str, reason: str) -> None:
    port = Port(lambda reply, data: [(reply.model_copy(update={"status": status}), b"")])
    with pytest.raises(TransferFailed) as failure:
        get(port, tmp_path)
    assert failure.value.reason == reason
    assert max(port.asked.count(index) for index in port.asked) == 1


def test_attack_18_silence_ends_as_stalled(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    "spoil",
    [lambda data: b"\0" + data[1:], lambda data: data[:-1], lambda data: b""],
    ids=["flipped", "truncated", "empty"],
)
def test_attack_17_a_wrong_chunk_costs_that_chunk_alone(tmp_path: Path, spoil) -> None:
    spoilt: list[int] = []

    def line(reply: ChunkReply, data: bytes) -> list[tuple[ChunkReply, bytes]]:
        if reply.index % 10 == 3 and spoilt.count(reply.index) < 2:
            spoilt.append(reply.index)
            return [(reply, spoil(data))]
        return [(reply, data)]

    port = Port(line)
    assert get(port, tmp_path) == DATA
    assert sorted(port.asked) == sorted([*range(41), *spoilt])


def test_attack_22_a_forged_chunk_before_the_true_one_costs_no_request_twice_over(
    tmp_path: Path,
) -> None:
    def line(reply: ChunkReply, data: bytes) -> list[tuple[ChunkReply, bytes]]:
        return [(reply, bytes(len(data))), (reply, data)]

    port = Port(line)
    assert get(port, tmp_path) == DATA
    assert len(port.asked) < 2 * 41 + 1


@pytest.mark.parametrize("status", ["not_found", "denied"])
def test_attack_22_refusals_that_answer_no_request_are_nothing(tmp_path: Path, status: str) -> None:
    unasked = ChunkReply.model_validate({"sha256": FORM.sha256, "index": 30, "status": status})

    def line(reply: ChunkReply, data: bytes) -> list[tuple[ChunkReply, bytes]]:
        return [(unasked, b""), (reply, data)] if reply.index == 0 else [(reply, data)]

    assert get(Port(line), tmp_path) == DATA


class Flood(Port):
    """A port whose queue is never empty: each look finds one more reply of no use."""

    def __init__(self, junk: tuple[ChunkReply, bytes], line: Line | None = None) -> None:
        super().__init__(line or (lambda reply, data: [(reply, data)]))
        outer = self

        class Endless(queue.Queue[tuple[ChunkReply, bytes]]):
            def get(self, block: bool = True, timeout: float | None = None):
                outer.looks += 1
                if self.qsize() and outer.looks % 3 == 0:
                    return super().get(False)
                return junk

        self.looks = 0
        self.replies = Endless()


@pytest.mark.parametrize(
    "junk",
    [
        (ChunkReply(sha256="0" * 64, index=0), b"x" * CHUNK),
        (ChunkReply(sha256=FORM.sha256, index=0), DATA[:CHUNK]),
        (ChunkReply(sha256=FORM.sha256, index=10**9), b"x" * CHUNK),
        (ChunkReply(sha256=FORM.sha256, index=-1), b"x" * CHUNK),
    ],
    ids=["foreign", "doubled", "beyond", "negative"],
)
def test_attack_16_endless_replies_neither_grow_the_file_nor_stop_the_download(
    tmp_path: Path, junk: tuple[ChunkReply, bytes]
) -> None:
    assert get(Flood(junk), tmp_path) == DATA


def test_attack_16_endless_replies_do_not_hide_a_stall(tmp_path: Path) -> None:
    junk = (ChunkReply(sha256=FORM.sha256, index=7), b"x" * CHUNK * 2)
    silent: Line = lambda reply, data: []  # noqa: E731
    with pytest.raises((TransferStalled, TransferFailed)):
        get(Flood(junk, silent), tmp_path)


def test_attack_20_a_withdrawn_release_ends_its_download_at_once_even_in_a_flood(
    tmp_path: Path,
) -> None:
    port = Flood((ChunkReply(sha256="0" * 64, index=0), b""), lambda reply, data: [])
    asked: list[int] = []
    with pytest.raises(Interrupted):
        transfer(port, tmp_path, stall_timeout_s=60.0).download(
            FORM,
            CHUNK,
            chunk_list(DATA, CHUNK),
            interrupted=lambda: asked.append(len(port.asked)) or len(asked) > 5,
        )
    assert asked[-1] == len(port.asked), "nothing more is asked for"


def test_attack_20_a_download_is_cancelled_while_it_verifies_what_it_had(tmp_path: Path) -> None:
    get(Port(), tmp_path)
    port = Port()
    with pytest.raises(Interrupted):
        transfer(port, tmp_path).download(
            FORM, CHUNK, chunk_list(DATA, CHUNK), interrupted=lambda: True
        )
    assert port.asked == []


class Ticks:
    """Seconds that pass with each look, so that a slow line takes no time."""

    def __init__(self, step_s: float) -> None:
        self.now, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now += self.step_s
        return self.now


DEFAULT = AgentSettings().update_min_kib_s


@pytest.mark.parametrize(
    ("min_kib_s", "every_s", "stalls"),
    [
        (0.0, 5.0, False),
        (0.05, 5.0, False),
        (50.0, 5.0, True),
        (0.0, 25.0, False),
        # as with chunks of 64 KiB: one every 25 seconds is too slow, one every ten is not
        (DEFAULT / 64, 25.0, True),
        (DEFAULT / 64, 10.0, False),
    ],
)
def test_attack_18_slow_retrieval_is_told_and_what_came_is_kept(
    tmp_path: Path, min_kib_s: float, every_s: float, stalls: bool
) -> None:
    clock, waiting = Ticks(0.25), queue.Queue[tuple[ChunkReply, bytes]]()

    class Slow(Port):
        """Gives one chunk at a time."""

        given_at = 0.0

        class Dripping(queue.Queue[tuple[ChunkReply, bytes]]):
            def get(self, block: bool = True, timeout: float | None = None):
                if clock() - port.given_at < every_s:
                    raise queue.Empty
                port.given_at = clock.now
                return waiting.get(False)

        def request(self, request: ChunkRequest) -> None:
            self.replies, dripping = waiting, self.replies
            super().request(request)
            self.replies = dripping

    port = Slow()
    port.replies = Slow.Dripping()
    download = Transfer(
        port,
        tmp_path,
        pace=Pace(min_kib_s=min_kib_s),
        reply_timeout_s=60.0,
        stall_timeout_s=30.0,
        clock=clock,
    )
    if not stalls:
        path = download.download(FORM, CHUNK, chunk_list(DATA, CHUNK))
        assert path.read_bytes() == DATA
        return
    with pytest.raises(TransferStalled, match=r"are asked for; [1-9][0-9]? of 41 chunks are here"):
        download.download(FORM, CHUNK, chunk_list(DATA, CHUNK))
    before = len(set(port.asked))
    again = Port()
    assert get(again, tmp_path) == DATA
    assert len(again.asked) < 41, f"{before} were asked for before"


def test_asks_no_faster_than_the_rate(tmp_path: Path) -> None:
    clock, asked_at = Ticks(0.01), list[float]()

    class Timed(Port):
        def request(self, request: ChunkRequest) -> None:
            asked_at.extend([clock.now] * int(request.bitmap, 16).bit_count())
            super().request(request)

    download = Transfer(Timed(), tmp_path, pace=Pace(max_kib_s=40), clock=clock)
    path = download.download(FORM, CHUNK, chunk_list(DATA, CHUNK))
    assert path.read_bytes() == DATA
    for index, at in enumerate(asked_at):  # 40 chunks a second, and some of them at once
        assert index <= 40 * (at - asked_at[0]) + 6


def test_a_line_that_is_not_there_costs_no_chunk(tmp_path: Path) -> None:
    class Absent(Port):
        refused = 0

        def request(self, request: ChunkRequest) -> bool:  # type: ignore[override]
            if self.refused < 3:
                self.refused += 1
                return False
            super().request(request)
            return True

    port = Absent()
    assert get(port, tmp_path, reply_timeout_s=30.0, stall_timeout_s=5.0) == DATA
    assert sorted(port.asked) == list(range(41))


@pytest.mark.parametrize("length", [0, 1, 40, 42, 10_000])
def test_a_map_of_another_length_is_not_believed(tmp_path: Path, length: int) -> None:
    (tmp_path / f"{FORM.sha256}.map").write_bytes(b"\1" * length)
    (tmp_path / f"{FORM.sha256}.part").write_bytes(b"\xff" * len(DATA) * 2)
    assert get(Port(), tmp_path) == DATA


def test_a_link_in_place_of_the_partial_file_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / f"{FORM.sha256}.part").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        get(Port(), tmp_path)
    assert victim.read_bytes() == b"mine"


@pytest.mark.parametrize("room", [CHUNK * 20 + CHUNK // 2, len(DATA) - 50])
def test_fault_24_a_disk_that_takes_a_part_of_a_chunk_is_told(tmp_path: Path, room: int) -> None:
    """Only so much of the file can be written, as on a disk that fills up within a chunk."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    part = tmp_path / f"{FORM.sha256}.part"
    part.write_bytes(bytes(len(DATA)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            get(Port(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    port = Port()
    assert get(port, tmp_path) == DATA


def test_progress_is_told_while_it_runs_only(tmp_path: Path) -> None:
    seen: list[tuple[int, int] | None] = []
    download = transfer(Port(), tmp_path)
    download.download(
        FORM,
        CHUNK,
        chunk_list(DATA, CHUNK),
        interrupted=lambda: seen.append(download.progress) is not None,
    )
    assert seen == sorted(seen)
    assert (seen[0], seen[-1][1]) == ((0, len(DATA)), len(DATA))
    assert download.progress is None


@pytest.mark.parametrize(("min_kib_s", "advanced"), [(0.0, True), (0.5, True), (1.0, False)])
def test_attack_18_a_try_counts_as_a_dead_end_when_it_was_too_slow_on_the_whole(
    tmp_path: Path, min_kib_s: float, advanced: bool
) -> None:
    """Twenty chunks of 1 KiB come at once, then the line is silent for half a minute."""
    port, clock = Port(lambda reply, data: [(reply, data)] if reply.index < 20 else []), Ticks(0.25)

    class Waiting(queue.Queue[tuple[ChunkReply, bytes]]):
        def get(self, block: bool = True, timeout: float | None = None):
            return super().get(False)

    port.replies = Waiting()
    pace = Pace(min_kib_s=min_kib_s)
    with pytest.raises(TransferStalled) as stalled:
        Transfer(port, tmp_path, pace=pace, stall_timeout_s=30.0, clock=clock).download(
            FORM, CHUNK, chunk_list(DATA, CHUNK)
        )
    assert stalled.value.advanced is advanced
