"""A retrained network keeps its parent's scales where that costs little, and says where not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from edge_agent.runtime import open_session
from edge_agent.wire.manifest import ModelSpec
from optimizer.budget import Budget
from optimizer.passes import Artifact, PassContext, find
from optimizer.passes.frozen import ACTIVATION_CLIP, ACTIVATION_WIDTH, freeze
from optimizer.profiles import load_profile
from optimizer.search import optimize
from optimizer.task import TrainedMember
from tests.optimizer.conftest import Digits, only

PROFILE = "x86-64-vnni"


def arrays(path: Path) -> dict[str, NDArray]:
    return {item.name: numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}


def retrained(source: Path, target: Path, change: dict[str, NDArray]) -> Path:
    """`source` with some weights replaced."""
    model = onnx.load(source)
    for item in model.graph.initializer:
        if item.name in change:
            item.CopyFrom(numpy_helper.from_array(change[item.name], item.name))
    onnx.save(model, target)
    return target


def learnt_on(values: NDArray, seed: int = 1) -> NDArray:
    """Weights after a little more training: moved by a hundredth of their spread."""
    moved = np.random.default_rng(seed).normal(0, 0.01 * values.std(), values.shape)
    return (values + moved).astype(np.float32)


class Bench:
    """Quantises networks one after the other, with the first as parent or without."""

    def __init__(self, directory: Path, member: TrainedMember, digits: Digits) -> None:
        self.directory, self.source = directory, member.onnx_path
        self.x = (digits.images[:300] / 16)[:, None]
        self.parent, _ = self.quantise("parent", self.source, None)

    def quantise(
        self, name: str, source: Path, parent: Path | None, profile: str = PROFILE
    ) -> tuple[Path, Artifact]:
        place = self.directory / name
        place.mkdir()
        context = PassContext(source, {"x": self.x}, place, load_profile(profile), parent=parent)
        return place, find("ort-int8").apply(context)

    def changed(self, name: str = "next", **change: NDArray) -> Path:
        return retrained(self.source, self.directory / f"{name}.onnx", change)

    def logits(self, place: Path, file: str = "model.onnx") -> NDArray:
        spec = ModelSpec(runtime="onnxruntime", file=file, inputs=(), outputs=())
        session = open_session(place / file, spec)
        try:
            return session.run({"x": self.x})["logits"]
        finally:
            session.close()


@pytest.fixture
def bench(tmp_path, members, digits) -> Bench:
    return Bench(tmp_path, members[1], digits)


def test_a_retrained_network_has_the_parents_scales_and_its_own_weights(bench: Bench) -> None:
    before = arrays(bench.source)
    source = bench.changed(v=learnt_on(before["v"]))
    place, artifact = bench.quantise("frozen", source, bench.parent)
    assert artifact.notes == ("scales of the parent version kept or fitted for 5 of 5 tensors",)
    old, new = arrays(bench.parent / "model.onnx"), arrays(place / "model.onnx")
    assert old.keys() == new.keys()
    for name in old:
        if "scale" in name or "zero_point" in name:
            np.testing.assert_array_equal(old[name], new[name], err_msg=name)
    assert not np.array_equal(old["v_quantized"], new["v_quantized"])
    free, _ = bench.quantise("free", source, None)
    same_frozen = np.mean(old["v_quantized"] == new["v_quantized"])
    same_free = np.mean(old["v_quantized"] == arrays(free / "model.onnx")["v_quantized"])
    assert same_frozen > same_free


def test_what_it_answers_is_as_near_to_fp32_as_with_scales_of_its_own(bench: Bench) -> None:
    before = arrays(bench.source)
    source = bench.changed(w=learnt_on(before["w"]), v=learnt_on(before["v"], 2))
    frozen, _ = bench.quantise("frozen", source, bench.parent)
    free, _ = bench.quantise("free", source, None)
    wanted = bench.logits(source.parent, source.name)
    worst = [np.abs(bench.logits(place) - wanted).max() for place in (frozen, free)]
    assert worst[0] < 1.5 * worst[1]


def test_unchanged_weights_give_the_same_file(bench: Bench) -> None:
    place, _ = bench.quantise("again", bench.source, bench.parent)
    assert (place / "model.onnx").read_bytes() == (bench.parent / "model.onnx").read_bytes()


def test_a_channel_that_was_multiplied_keeps_its_integers(bench: Bench) -> None:
    """As by a batch normalisation that is folded into the layer."""
    filters = arrays(bench.source)["w"].copy()
    filters[3] *= 1.02
    filters[7] *= 0.5
    place, artifact = bench.quantise("frozen", bench.changed(w=filters), bench.parent)
    assert "kept or fitted for 5 of 5" in artifact.notes[0]
    old, new = arrays(bench.parent / "model.onnx"), arrays(place / "model.onnx")
    np.testing.assert_array_equal(old["w_quantized"], new["w_quantized"])
    assert new["w_scale"][7] == pytest.approx(0.5 * old["w_scale"][7], rel=1e-2)


def test_a_channel_that_would_be_clipped_gets_a_scale_of_its_own(bench: Bench) -> None:
    filters = arrays(bench.source)["w"].copy()
    filters[3, 0, 1, 1] += 3
    filters[7, 0, 1, 1] += 3
    place, artifact = bench.quantise("frozen", bench.changed(w=filters), bench.parent)
    (note,) = artifact.notes
    assert "w (2 of 24 channels)" in note
    old, new = (
        arrays(bench.parent / "model.onnx")["w_scale"],
        arrays(place / "model.onnx")["w_scale"],
    )
    assert set(np.flatnonzero(old != new)) == {3, 7}
    assert new[3] == pytest.approx(np.abs(filters[3]).max() / 127, rel=1e-5)


def test_activations_that_outgrow_their_range_get_a_new_one(bench: Bench) -> None:
    bias = arrays(bench.source)["b"] + 3
    place, artifact = bench.quantise("frozen", bench.changed(b=bias), bench.parent)
    assert "would be clipped" in artifact.notes[0]
    wanted = bench.logits(bench.directory, "next.onnx")
    free, _ = bench.quantise("free", bench.directory / "next.onnx", None)
    assert (
        np.abs(bench.logits(place) - wanted).max() < 1.5 * np.abs(bench.logits(free) - wanted).max()
    )


def test_another_network_is_quantised_afresh(bench: Bench, members) -> None:
    place, artifact = bench.quantise("small", members[0].onnx_path, bench.parent)
    assert "new scales for" in artifact.notes[0]
    alone, _ = bench.quantise("alone", members[0].onnx_path, None)
    assert arrays(place / "model.onnx")["w_scale"].tolist() == pytest.approx(
        arrays(alone / "model.onnx")["w_scale"].tolist()
    )


def test_a_parent_of_other_nodes_changes_nothing(bench: Bench) -> None:
    model = onnx.load(bench.parent / "model.onnx")
    other = onnx.load(bench.parent / "model.onnx")
    other.graph.node[0].output[0] += "_renamed"
    assert freeze(model, {}, other, 127) is None
    assert model == onnx.load(bench.parent / "model.onnx")


def test_weights_of_a_parent_with_the_full_range_are_not_saturated(bench: Bench) -> None:
    place, artifact = bench.quantise(
        "reduced", bench.source, bench.parent, profile="generic-x86-64"
    )
    quantised = arrays(place / "model.onnx")
    assert max(np.abs(quantised[name].astype(int)).max() for name in ("w_quantized",)) <= 64
    assert "new scales for" in artifact.notes[0]


@pytest.mark.parametrize("content", [b"", b"not a network"])
def test_a_parent_that_cannot_be_read_is_said_in_the_report(bench: Bench, content: bytes) -> None:
    broken = bench.directory / "broken"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(content)
    _, artifact = bench.quantise("next", bench.source, broken)
    assert artifact.notes[0].endswith("new scales")


@pytest.mark.parametrize(
    ("factor", "keeps"),
    [
        (1.0, True),
        (1 + 0.9 * ACTIVATION_CLIP, True),
        (1 + 4 * ACTIVATION_CLIP, False),
        (0.9, True),
        (0.9 / ACTIVATION_WIDTH, False),
    ],
)
def test_how_far_a_range_may_be_off(bench: Bench, factor: float, keeps: bool) -> None:
    model = onnx.load(bench.parent / "model.onnx")
    for item in model.graph.initializer:
        if item.name == "logits_scale":
            item.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(item) * np.float32(factor), item.name)
            )
    parent = onnx.load(bench.parent / "model.onnx")
    frozen = freeze(model, arrays(bench.source), parent, 127)
    assert frozen is not None
    assert any("logits" in line for line in frozen.renewed) is not keeps


# ── through the search ───────────────────────────────────────────────────────────────────────────


def test_the_search_takes_scales_from_the_same_variant_and_says_so(tmp_path, task) -> None:
    first = optimize(only(task, "large", "ort-int8"))
    assert not any("parent" in note for note in first.candidates[0].notes)
    again = replace(task, parent_dir=task.out_dir, out_dir=tmp_path / "again", version=4)
    second = optimize(only(again, "large", "ort-int8")).candidates[0]
    assert "scales of the parent version kept or fitted for 5 of 5 tensors" in second.notes
    # A member that the parent version did not have.
    (tmp_path / "bundles" / "this-machine" / "large-ort-int8").rename(tmp_path / "gone")
    third = optimize(only(again, "large", "ort-int8")).candidates[0]
    assert not any("parent" in note for note in third.notes)


def test_accuracy_comes_before_small_updates(tmp_path, task, monkeypatch) -> None:
    """A parent whose scales fit by every rule, but whose answers are wrong."""
    optimize(only(task, "large", "ort-int8"))
    strict = Budget(latency_ms=500, percentile=0.9, max_accuracy_drop_points=1.0)
    again = replace(
        task, parent_dir=task.out_dir, out_dir=tmp_path / "again", profiles={"this-machine": strict}
    )
    monkeypatch.setattr("optimizer.passes.frozen.NOISE", 1e9)
    monkeypatch.setattr("optimizer.passes.frozen.ACTIVATION_WIDTH", 1e9)
    path = task.out_dir / "this-machine" / "large-ort-int8" / "model.onnx"
    model = onnx.load(path)
    for item in model.graph.initializer:
        if item.name.endswith("_scale") and "bias" not in item.name:
            item.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(item) * np.float32(60), item.name)
            )
    onnx.save(model, path)
    (candidate,) = optimize(only(again, "large", "ort-int8")).candidates
    assert candidate.verdict == "PASS", candidate.reason
    assert any(n.endswith("lost too much accuracy: new scales") for n in candidate.notes)


def test_a_network_without_zero_points_is_left_as_it_is() -> None:
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "s"], ["q"]),
        onnx.helper.make_node("DequantizeLinear", ["q", "s"], ["y"]),
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")
    ]
    scale = onnx.numpy_helper.from_array(np.asarray(0.1, np.float32), "s")
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], [scale])
    model = onnx.helper.make_model(graph)
    assert freeze(model, {}, model, 127) is None
