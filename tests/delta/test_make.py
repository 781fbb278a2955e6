"""A delta makes the new bundle of the old one, exactly, and costs less than any other way."""

from __future__ import annotations

import bz2
import io
import lzma

import bsdiff4
import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud.delta import Delta, make_delta
from cloud.delta.make import BSDIFF_BYTES
from edge_agent.update.delta import apply
from edge_agent.wire import delta as form
from tests.delta.samples import (
    Bytes,
    bundle,
    int8,
    onnx_file,
    trained_on,
    versions,
    weights,
)


def made(base: bytes, target: bytes) -> Delta:
    """A delta that was applied once."""
    delta = make_delta(base, target)
    assert delta is not None
    assert applied(delta.data, base, len(target)) == target
    return delta


def applied(data: bytes, base: bytes, length: int) -> bytes:
    return b"".join(apply(io.BytesIO(data), Bytes(base), length))


@pytest.mark.parametrize("quantised", [True, False])
def test_weights_that_moved_cost_less_than_any_other_way(quantised: bool) -> None:
    old, new = versions(quantised)
    ours = len(made(old, new).data)
    others = {
        "zstd": len(zstandard.compress(new, 19)),
        "bsdiff": len(bsdiff4.diff(old, new)),
        "lzma": len(lzma.compress(new)),
        "bzip2": len(bz2.compress(new)),
    }
    assert ours < min(others.values()), others
    assert ours <= (0.15 if quantised else 0.70) * len(new)


def test_a_version_that_is_the_same_costs_next_to_nothing() -> None:
    old, _ = versions()
    delta = made(old, old)
    assert len(delta.data) < 400
    assert delta.target_bytes.keys() <= {"copy", "small"}


def test_layers_that_stay_are_copied() -> None:
    old = int8(weights(1, ((128, 128), (128, 128))))
    new = [old[0], int8(weights(9, ((128, 128),)))[0]]
    delta = made(bundle({"model.onnx": onnx_file(old)}), bundle({"model.onnx": onnx_file(new)}))
    assert delta.target_bytes["copy"] == old[0].size
    assert delta.target_bytes["data"] == new[1].size


def test_tensors_that_an_exporter_renames_and_moves_are_found_again() -> None:
    old = int8(weights(1))
    new = int8(trained_on(weights(1), 2))
    moved = onnx_file(new[::-1], ["onnx::9", "onnx::8", "w0"])
    delta = made(bundle({"model.onnx": onnx_file(old)}), bundle({"model.onnx": moved}))
    assert len(delta.data) < 0.2 * len(moved)


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "bool"])
def test_every_type_of_element_comes_back(dtype: str) -> None:
    old = np.random.default_rng(1).normal(0, 40, (37, 29)).astype(dtype)
    new = (old + np.random.default_rng(2).integers(0, 2, old.shape)).astype(dtype)
    made(bundle({"model.onnx": onnx_file([old])}), bundle({"model.onnx": onnx_file([new])}))


def test_a_file_with_insertions_costs_the_insertions() -> None:
    old = np.random.default_rng(1).integers(0, 256, 600_000, np.uint8).tobytes()
    new = old[:200_000] + b"inserted" * 4 + old[200_000:500_000] + b"tail"
    delta = made(bundle({"engine.plan": old}), bundle({"engine.plan": new}))
    assert len(delta.data) < 2_000


def test_long_files_of_an_unknown_kind_are_held_against_the_same_place() -> None:
    old = np.random.default_rng(1).integers(0, 256, 5 << 20, np.uint8).tobytes()
    new = old[: 4 << 20] + bytes(1 << 20)
    delta = made(bundle({"engine.plan": old}), bundle({"engine.plan": new}))
    assert len(delta.data) < 2_000


def test_openvino_weights_are_found_by_their_description() -> None:
    old, new = int8(weights(1)), int8(trained_on(weights(1), 2))
    at, layers = 0, []
    for index, each in enumerate(old):
        layers.append(
            f'<layer id="{index}" name="w{index}" type="Const"><data element_type="i8" '
            f'shape="{each.size}" offset="{at}" size="{each.size}"/></layer>'
        )
        at += each.size
    description = f"<net><layers>{''.join(layers)}</layers></net>".encode()
    pack = [
        bundle({"model.bin": b"".join(w.tobytes() for w in ws), "model.xml": description})
        for ws in (old, new)
    ]
    delta = made(*pack)
    assert set(delta.target_bytes) == {"ternary", "small"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"", b""),
        (b"", b"x"),
        (b"x", b""),
        (b"no tar", b"no tar either" * 100_000),
        (bundle({"model.onnx": b"\xff" * 999}), bundle({"model.onnx": b"\x0a\x7f"})),
        (bundle({"model.bin": b"w" * 99, "model.xml": b"<net"}), bundle({"model.bin": b"v" * 99})),
    ],
)
def test_what_is_no_network_is_still_exact(old: bytes, new: bytes) -> None:
    made(old, new)


def test_a_file_that_repeats_itself_for_long_does_not_take_all_the_time() -> None:
    # the search for moved bytes takes minutes here
    old, new = bytes(BSDIFF_BYTES), bytes(BSDIFF_BYTES - 5) + b"moved"
    base, target = (bundle({"table.dat": data, "code.py": data[-9:]}) for data in (old, new))
    delta = make_delta(base, target, budget_s=4)
    assert delta is not None and len(delta.data) < 2000
    assert applied(delta.data, base, len(target)) == target


def test_no_delta_is_made_when_the_time_is_over() -> None:
    assert make_delta(*versions(), budget_s=0) is None


def test_a_delta_stays_within_the_bounds_that_devices_hold_it_to() -> None:
    old = weights(1, ((1200, 1100),))
    delta = made(
        bundle({"model.onnx": onnx_file(old)}),
        bundle({"model.onnx": onnx_file(trained_on(old, 2)), "notes": b"n" * 900_000}),
    )
    fields = form.HEADER.unpack_from(delta.data)
    assert fields[0] == form.MAGIC
    assert fields[3] <= form.MAX_OPS
    assert fields[5] <= form.MAX_SMALL_BYTES
    assert delta.ram_needed == form.RAM_NEEDED_BYTES


pieces = st.lists(
    st.one_of(
        st.binary(max_size=300),
        st.integers(0, 255).map(lambda value: bytes([value]) * 5000),
        st.just(b"\x08\x01\x12\x04abcd"),
    ),
    max_size=8,
).map(b"".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pieces, pieces, st.sampled_from(["model.onnx", "model.bin", "other"]))
def test_any_two_files_come_back(old: bytes, new: bytes, name: str) -> None:
    made(bundle({name: old}), bundle({"manifest.json": b"{}", name: new}))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_residuals_come_back(data: st.DataObject) -> None:
    width = data.draw(st.sampled_from(form.WIDTHS))
    count = data.draw(st.integers(64, 400))
    spread = data.draw(st.sampled_from([0, 1, 2, 5, 127]))
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    old = random.integers(0, 256, (count, width), np.uint8)
    new = old.copy()
    new[:, 0] += random.integers(-spread, spread + 1, count).astype(np.uint8)
    dtype = f"<u{width}"
    made(
        bundle({"model.onnx": onnx_file([old.reshape(-1).view(dtype)])}),
        bundle({"model.onnx": onnx_file([new.reshape(-1).view(dtype)])}),
    )
