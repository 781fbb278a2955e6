"""The optimizer's benchmark: its networks, its data, its peers' part, and what it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from bench.loads.errors import BenchError, ServerFailed
from bench.optimizers import peers, report
from bench.optimizers.peers import PeerFigures
from bench.optimizers.run import Figures, Settings, run
from bench.optimizers.subjects import INPUT, subjects
from edge_agent.measure import Comparison

SUBJECTS = {subject.name: subject for subject in subjects(quick=True)}


def ratio(speedup: float) -> Comparison:
    return Comparison(
        speedup=speedup, low=speedup * 0.9, high=speedup * 1.1, pairs=50, baseline_p50_ms=speedup,
        candidate_p50_ms=1.0, provenance={},
    )  # fmt: skip


def figures(name: str, speedup: float, **more: object) -> Figures:
    given: dict[str, object] = {
        "about": "", "winner": "trained/ort-int8", "precision": "int8", "accuracy": 0.97,
        "reference_accuracy": 0.975, "vs_torch": ratio(speedup * 2), "vs_ort": ratio(speedup),
        "vs_ort_one_thread": ratio(speedup * 3),
        "points": 40, "measured": 4, "minutes": 1.5,
    }  # fmt: skip
    return Figures(name=name, **(given | more))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_network_takes_what_is_served_and_gives_a_logit_for_each_name(name: str) -> None:
    subject = SUBJECTS[name]
    data = subject.data()
    torch.manual_seed(0)
    with torch.inference_mode():
        logits = subject.build().eval()(torch.from_numpy(data.judged[:2]))
    assert data.judged.shape[1:] == subject.item
    assert logits.shape == (2, len(data.names))


@pytest.mark.parametrize("name", SUBJECTS)
def test_no_row_that_judges_is_trained_on_or_calibrates(name: str) -> None:
    subject = SUBJECTS[name]
    data, trained = subject.data(), subject.train()
    side = trained.tensors[INPUT].shape[-1]  # large images are sheets of what is trained on
    judged = {row[..., :side].tobytes() for row in crop(data.judged, side)}
    for rows in (trained.tensors[INPUT], crop(data.calibration, side), crop(data.golden, side)):
        assert not judged & {np.ascontiguousarray(row).tobytes() for row in rows}


def crop(rows: np.ndarray, side: int) -> np.ndarray:
    return np.ascontiguousarray(rows[..., :side, :side] if rows.ndim == 4 else rows)


def test_the_headline_takes_means_of_speedups_and_the_worst_of_the_rest() -> None:
    found = [
        figures("resnet", 8.0, best="trained/ort-int8"),
        figures("lstm", 2.0, accuracy=0.97, best="trained/fp32", vs_best=ratio(0.96)),
    ]
    total = report.headline(found)
    assert total["speedup_vs_ort_fp32"] == pytest.approx(4.0)
    assert total["resnet_speedup_vs_torch"] == pytest.approx(16.0)
    assert total["resnet_speedup_vs_ort_fp32_one_thread"] == pytest.approx(24.0)
    assert total["lowest_speedup"] == pytest.approx(2.0)
    assert total["share_of_exhaustive_best"] == pytest.approx(0.96)
    assert total["measured_fraction"] == pytest.approx(0.1)
    assert total["accuracy_drop_points"] == pytest.approx(0.5)
    assert json.loads(json.dumps(report.as_json(found, 0.1)))["models"]["lstm"]["points"] == 40


def test_a_choice_that_is_slower_than_a_peers_shows_in_the_headline(
    capsys: pytest.CaptureFixture[str],
) -> None:
    beaten = figures("digits", 3.0)
    beaten.peers = [
        PeerFigures("olive", {"fp32": 0.975, "int8": 0.9}, "fp32", ratio(2.0)),
        PeerFigures("nncf", {"int8": 0.97}, "int8", ratio(0.8)),
    ]
    assert report.headline([beaten])["lowest_over_peers"] == pytest.approx(0.8)
    report.print_tables([beaten])
    assert "✗" in capsys.readouterr().out


def test_an_unknown_network_is_named_with_those_there_are() -> None:
    with pytest.raises(BenchError, match=r"no network 'vgg'; there are digits, resnet"):
        Settings(names=("vgg",)).subjects()


def test_a_peer_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match="olive: ModuleNotFoundError"):
        peers.optimised("olive", Path(sys.executable), tmp_path / "x", tmp_path / "y", tmp_path)


def test_nncf_makes_what_is_compared(tmp_path: Path) -> None:
    """By this environment's own NNCF, as the peer's is the same package."""
    weights = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", [INPUT, "w"], ["logits"])],
        "n",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 4])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, str(tmp_path / "n.onnx"))
    x = np.random.default_rng(1).normal(size=(300, 16)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", **{INPUT: x})
    made = peers.optimised(
        "nncf", Path(sys.executable), tmp_path / "n.onnx", tmp_path / "rows.npz", tmp_path
    )
    assert set(made) == {"fp32", "int8"}
    for path in made.values():
        answer = peers.opened(path)(x[:3])
        assert np.abs(answer - x[:3] @ weights).max() < 0.5


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_quick_run_finds_figures(tmp_path: Path) -> None:
    told: list[str] = []
    settings = Settings(quick=True, exhaustive=False, names=("digits",))
    [found] = run(settings, tmp_path, told.append)
    assert found.vs_torch.pairs > 0
    assert 0 < found.measured <= found.points
    assert found.accuracy_drop_points <= 1
    assert any("digits" in line for line in told)
