"""Deltas on the device: exact, flat in memory, and harmless whatever they hold."""

from __future__ import annotations

import hashlib
import io
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud.delta import make_delta
from cloud.publish import build_bundle, hash_files
from edge_agent.update.base import SlotBundle
from edge_agent.update.bundle import unpack
from edge_agent.update.delta import apply
from edge_agent.update.errors import BadBundle
from edge_agent.update.files import Files
from edge_agent.wire import delta as form
from edge_agent.wire.delta import Kind
from edge_agent.wire.manifest import Manifest, ModelSpec, StepSpec
from tests.delta.samples import Bytes, versions

BASE = bytes(range(256)) * 40
OLD, NEW = versions()


def packed(data: bytes) -> bytes:
    """One frame with the window that the format allows."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        3, window_log=20, write_content_size=False
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compress(data)


def container(
    ops: list[tuple[int, int, int, int]],
    bulk: bytes,
    length: int,
    *,
    small: bytes = b"",
    ranges: list[tuple[int, int]] | None = None,
    header: dict[int, int] | None = None,
) -> bytes:
    """A delta of exactly this script; `header` replaces fields by their place."""
    ranges = ranges or []
    rows = [form.OP.pack(*op) for op in ops] + [form.RANGE.pack(*each) for each in ranges]
    script, small_frame = packed(b"".join(rows)), packed(small)
    fields = [
        form.MAGIC, length, len(BASE), len(ops), len(ranges), len(small), len(script),
        len(small_frame),
    ]  # fmt: skip
    for place, value in (header or {}).items():
        fields[place] = value
    return form.HEADER.pack(*fields) + script + small_frame + packed(bulk)


def run(data: bytes, length: int, base: bytes = BASE) -> bytes:
    """All blocks; fails when they are longer than signed, or too long for one block."""
    written = b""
    for block in apply(io.BytesIO(data), Bytes(base), length):
        assert len(block) <= form.MAX_OP_BYTES
        written += block
        assert len(written) <= length
    return written


def test_each_kind_of_operation_does_what_the_format_says() -> None:
    ops = [
        (Kind.SMALL, 1, 3, 0),
        (Kind.COPY, 1, 4, 8),  # 8 … 11
        (Kind.DATA, 1, 2, 0),
        (Kind.XOR, 2, 4, 0),  # goes on at 12
        (Kind.ADD, 2, 4, -16),  # 0 … 3
        (Kind.TERNARY, 1, 6, 0),  # 4 … 9
        (Kind.PLANES, 2, 4, 0),
    ]
    bulk = (
        b"hi"
        + bytes([1, 2, 0, 0])  # XOR of the low bytes by 1 and 2
        + bytes([2, 1, 0, 0])  # zigzag: +1 and −1
        + bytes([2 * 81 + 1 * 27 + 0 * 9 + 2 * 3 + 1, 1 * 81])  # +, 0, −, +, 0, 0
        + bytes([0 * 81 + 1 * 27 + 2 * 9])  # by 0, by 1, by 2 or more
        + bytes([5])
        + b"ACBD"
    )
    expected = (
        b"abc" + BASE[8:12] + b"hi" + bytes([13, 13, 12, 15])
        + bytes([1, 1, 1, 3]) + bytes([5, 5, 4, 15, 8, 9]) + b"ABCD"
    )  # fmt: skip
    assert run(container(ops, bulk, 27, small=b"abc"), 27) == expected


COPY_10 = (Kind.COPY, 1, 10, 0)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "too early"),
        (b"SKDELTA9" + bytes(60), "known version"),
        (container([COPY_10], b"", 10, header={1: 11}), "other lengths"),
        (container([COPY_10], b"", 10, header={2: 11}), "other lengths"),
        (container([COPY_10], b"", 10, header={3: 1 << 30}), "too long a script"),
        (container([COPY_10], b"", 10, header={4: 1 << 30}), "too long a script"),
        (container([COPY_10], b"", 10, header={5: 1 << 30}), "too large"),
        (container([COPY_10], b"", 10, header={6: 1 << 31}), "too large"),
        (container([COPY_10], b"", 10, header={3: 2}), "too early"),
        (container([COPY_10, COPY_10], b"", 10, header={3: 1}), "longer than its script"),
        (container([COPY_10], b"x", 10), "longer than its script"),
        (container([(Kind.COPY, 1, 11, 0)], b"", 10), "script is wrong"),
        (container([(Kind.COPY, 1, 9, 0)], b"", 10), "does not add up"),
        (container([(Kind.DATA, 1, 10, 0)], b"x" * 9, 10), "too early"),
        (container([(Kind.SMALL, 1, 10, 0)], b"", 10, small=b"x" * 9), "does not add up"),
        (container([(Kind.COPY, 1, 10, -1)], b"", 10), "beyond its base"),
        (container([(Kind.COPY, 1, 10, len(BASE))], b"", 10), "beyond its base"),
        (container([(Kind.COPY, 1, 10, 2**62)] * 3, b"", 10), "beyond its base"),
        (container([COPY_10], b"", 10, ranges=[(len(BASE), 1)]), "beyond its base"),
        (container([COPY_10], b"", 10, ranges=[(2**63, 1)]), "beyond its base"),
        (container([COPY_10], b"", 10, ranges=[(0, len(BASE))] * 200), "beyond its base"),
        (container([(9, 1, 10, 0)], b"", 10), "script is wrong"),
        (container([(Kind.COPY, 1, 0, 0), COPY_10], b"", 10), "script is wrong"),
        (container([(Kind.XOR, 3, 9, 0)], b"x" * 9, 9), "wrong width"),
        (container([(Kind.XOR, 4, 10, 0)], b"x" * 10, 10), "wrong width"),
        (container([(Kind.XOR, 0, 10, 0)], b"x" * 10, 10), "wrong width"),
        (container([(Kind.TERNARY, 2, 10, 0)], b"x" * 10, 10), "wrong width"),
        (container([(Kind.TERNARY, 1, 10, 0)], b"\xf3" * 10, 10), "no delta has"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_script_that_is_wrong_is_refused(data: bytes, complaint: str) -> None:
    length = 9 if data[8:9] == b"\x09" else 10
    with pytest.raises(BadBundle, match=complaint):
        run(data, length)


def test_attack_16_an_operation_longer_than_a_block_is_refused() -> None:
    length = form.MAX_OP_BYTES + 1
    with pytest.raises(BadBundle, match="script is wrong"):
        run(container([(Kind.DATA, 1, length, 0)], bytes(length), length), length)


def test_attack_16_a_bomb_in_bulk_costs_what_the_script_asks_for() -> None:
    bomb = container([(Kind.DATA, 1, 10, 0)], bytes(200 << 20), 10)
    assert len(bomb) < 50_000
    with pytest.raises(BadBundle, match="longer than its script"):
        run(bomb, 10)


@pytest.mark.parametrize("place", ["script", "small", "bulk"])
def test_attack_16_a_frame_that_claims_to_be_huge_is_not_believed(place: str) -> None:
    claim = b"\x28\xb5\x2f\xfd\xe0" + (1 << 50).to_bytes(8, "little") + b"\x01\x00\x00"
    frames = {
        "script": packed(form.OP.pack(Kind.DATA, 1, 10, 0)), "small": packed(b""),
        "bulk": packed(b"x" * 10),
    } | {place: claim}  # fmt: skip
    header = form.HEADER.pack(
        form.MAGIC, 10, len(BASE), 1, 0, 0, len(frames["script"]), len(frames["small"])
    )
    with pytest.raises(BadBundle):
        run(header + b"".join(frames.values()), 10)


def test_attack_16_a_window_larger_than_agreed_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=24)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    wide = compressor.compress(random.Random(1).randbytes(1000)) + compressor.flush()
    data = container([(Kind.DATA, 1, 1000, 0)], b"", 1000)
    with pytest.raises(BadBundle, match="does not decode"):
        run(data[: -len(packed(b""))] + wide, 1000)


DELTA = make_delta(OLD, NEW)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_attack_21_a_damaged_delta_ends_in_one_way(data: st.DataObject) -> None:
    assert DELTA is not None
    damaged = bytearray(DELTA.data)
    for _ in range(data.draw(st.integers(1, 4))):
        at = min(data.draw(st.integers(0, len(NEW)) | st.integers(0, 80)), len(damaged) - 1)
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "drop"]))
        if kind == "flip":
            damaged[at] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            del damaged[max(at, 1) :]
        elif kind == "insert":
            damaged[at:at] = data.draw(st.binary(min_size=1, max_size=20))
        else:
            del damaged[at : at + data.draw(st.integers(1, 50))]
        damaged = damaged or bytearray(b"\0")
    try:
        run(bytes(damaged), len(NEW), OLD)
    except BadBundle:
        return


ops_of_any_kind = st.lists(
    st.tuples(
        st.integers(0, 8),
        st.sampled_from([0, 1, 2, 3, 4, 8]),
        st.integers(0, 64),
        st.integers(-300, 11_000),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(ops_of_any_kind, st.binary(max_size=400), st.binary(max_size=40), st.booleans())
def test_any_script_stays_within_its_length_or_is_refused(
    ops: list[tuple[int, int, int, int]], bulk: bytes, small: bytes, fitting: bool
) -> None:
    length = sum(op[2] for op in ops) if fitting else 200
    try:
        assert len(run(container(ops, bulk, length, small=small), length)) == length
    except BadBundle:
        return


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_bytes_of_any_kind_are_refused(noise: bytes) -> None:
    for data in (noise, form.MAGIC + noise):
        with pytest.raises(BadBundle):
            run(data, 100)


# ── the base ─────────────────────────────────────────────────────────────────────────────────────


def unpacked(directory: Path, files: dict[str, bytes]) -> tuple[bytes, Path]:
    """A raw bundle as the publisher packs it, and the slot as the device unpacks it."""
    source, slot = directory / "source", directory / "slot"
    source.mkdir()
    slot.mkdir()
    for name, data in files.items():
        (source / name).write_bytes(data)
    manifest = Manifest(
        model="digits", version=1, profile="this-machine", variant="v", inputs=(), outputs=(),
        pipeline=(StepSpec(name="model"),),
        network=ModelSpec(runtime="onnxruntime", file="model.onnx", inputs=(), outputs=()),
        files=hash_files(source),
    )  # fmt: skip
    raw = build_bundle(source, manifest)
    unpack(io.BytesIO(raw), slot, Files())
    return raw, slot


FILES = {"model.onnx": os.urandom(3000), "b": b"", "a": b"x" * 512, "Z.py": b"y" * 513}


def test_a_slot_reads_as_the_bundle_it_came_from(tmp_path: Path) -> None:
    raw, slot = unpacked(tmp_path, FILES)
    with SlotBundle(slot) as base:
        assert base.length == len(raw)
        assert base.sha256() == hashlib.sha256(raw).hexdigest()
        spots = random.Random(1)
        for _ in range(300):
            offset = spots.randrange(len(raw))
            length = spots.randrange(len(raw) - offset + 1)
            assert base.read(offset, length) == raw[offset : offset + length]


def test_a_slot_is_read_within_its_bounds(tmp_path: Path) -> None:
    raw, slot = unpacked(tmp_path, FILES)
    with SlotBundle(slot) as base:
        for offset, length in ((-1, 2), (0, len(raw) + 1), (len(raw), 1)):
            with pytest.raises(BadBundle, match="beyond"):
                base.read(offset, length)


@pytest.mark.parametrize("harm", ["shorter", "gone", "link"])
def test_attack_21_a_slot_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, harm: str
) -> None:
    raw, slot = unpacked(tmp_path, FILES)
    with SlotBundle(slot) as base:
        path = slot / "model.onnx"
        path.unlink()
        if harm == "shorter":
            path.write_bytes(b"short")
        elif harm == "link":
            path.symlink_to(tmp_path / "source" / "model.onnx")
        with pytest.raises(BadBundle, match=r"shorter|cannot be read"):
            base.read(0, len(raw))


def test_attack_21_a_slot_without_a_file_is_no_base(tmp_path: Path) -> None:
    _, slot = unpacked(tmp_path, FILES)
    (slot / "a").unlink()
    with pytest.raises(BadBundle, match="cannot be read"):
        SlotBundle(slot)


# ── memory ───────────────────────────────────────────────────────────────────────────────────────

PEAK = """
import sys
from pathlib import Path
from edge_agent.update.decode import decode
from edge_agent.wire.manifest import Encoding
class Base:
    def __init__(self, path):
        self.file, self.length = path.open("rb"), path.stat().st_size
    def read(self, offset, length):
        self.file.seek(offset)
        return self.file.read(length)
def peak():  # ru_maxrss would be inherited from the parent
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
old, delta, raw, sha, length = sys.argv[1:]
form = Encoding(
    algo="delta", base_sha256="0" * 64, sha256="0" * 64, length=1, chunks_sha256="0" * 64
)
before = peak()
decode(form, Path(delta), int(length), sha, Path(raw), Base(Path(old)))
print(peak() - before)
"""


@pytest.mark.slow
def test_memory_stays_flat_over_100_mib(tmp_path: Path) -> None:
    noise = random.Random(1)
    old = noise.randbytes(101 << 20)
    step = form.MAX_OP_BYTES
    ops: list[tuple[int, int, int, int]] = []
    bulk = []
    for index in range(200):
        kind, width = ((Kind.XOR, 4), (Kind.ADD, 4), (Kind.TERNARY, 1), (Kind.ADD, 1))[index % 4]
        ops.append((kind, width, step, 0))
        if kind == Kind.TERNARY:
            bulk += [bytes([242]) * -(-step // 5), bytes([242]) * -(-step // 5), bytes(step)]
        else:
            bulk.append(noise.randbytes(step))
    small = noise.randbytes(form.MAX_SMALL_BYTES - 1)
    ops += [(Kind.SMALL, 1, step, 0), (Kind.SMALL, 1, step - 1, 0)]
    length = 202 * step - 1
    delta = container(
        ops, b"".join(bulk), length, small=small, ranges=[(0, 1 << 20)], header={2: len(old)}
    )
    digest = hashlib.sha256()
    for block in apply(io.BytesIO(delta), Bytes(old), length):
        digest.update(block)
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "delta").write_bytes(delta)
    arguments = [tmp_path / "old", tmp_path / "delta", tmp_path / "raw"]
    result = subprocess.run(
        [sys.executable, "-c", PEAK, *arguments, digest.hexdigest(), str(length)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert float(result.stdout) <= form.RAM_NEEDED_BYTES / (1 << 20)
