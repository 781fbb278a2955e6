"""What versions counted that serve no more: seen by the next scrape, within bounds."""

from __future__ import annotations

from pathlib import Path

from edge_agent.serve import DataPlane, ServedModel
from edge_agent.serve.metrics import ModelMetrics
from edge_agent.serve.replaced import KEPT_S, MAX_KEPT, MAX_PER_MODEL, ReplacedVersions
from tests.runtime.networks import write_bundle

from .conftest import Running
from .gates import Doubling, doubling
from .test_metrics import histogram, parsed
from .test_protocol import INFER, json_request


def counted(predictions: int) -> ModelMetrics:
    metrics = ModelMetrics(0.0)
    for _ in range(predictions):
        metrics.predicted(1.0)
    return metrics


def load(directory: Path, version: int) -> ServedModel:
    write_bundle(directory, version=version, cost_us=50)
    return ServedModel.load(directory)


def answered(running: Running) -> dict[int, float]:
    """Answers by version, as a scrape sees them."""
    text = running.ask("GET", "/metrics").body.decode()
    family = parsed(text)["skerry_latency_seconds"]
    versions = {dict(pairs)["version"] for _, pairs in family.samples}
    return {
        int(version): histogram(family, model="digits", version=version)[2] for version in versions
    }


def test_the_last_counts_of_a_replaced_version_reach_a_scrape(
    quick_serving: Running, tmp_path: Path
) -> None:
    plane = quick_serving.plane
    for _ in range(2):
        assert quick_serving.ask("POST", INFER, json_request()).status == 200
    plane.install("digits", load(tmp_path / "2", 2))
    assert answered(quick_serving) == {1: 2, 2: 0}
    assert quick_serving.ask("POST", INFER, json_request()).status == 200
    plane.revert("digits")
    assert quick_serving.ask("POST", INFER, json_request()).status == 200
    assert answered(quick_serving) == {1: 3, 2: 1}
    statistics = quick_serving.ask("GET", "/v2/models/stats").json["model_stats"]
    assert [each["version"] for each in statistics] == ["1"], "what serves, and nothing else"
    plane.remove("digits")
    assert answered(quick_serving) == {1: 3, 2: 1}


def test_a_version_that_is_loaded_again_counts_on(quick_serving: Running, tmp_path: Path) -> None:
    """A counter that went back would be read as that many requests anew."""
    plane = quick_serving.plane
    for number in range(4):
        assert quick_serving.ask("POST", INFER, json_request()).status == 200
        plane.install("digits", load(tmp_path / str(number), 1 + number % 2))
    assert quick_serving.ask("POST", INFER, json_request()).status == 200
    assert answered(quick_serving) == {1: 3, 2: 2}
    assert plane.window_metrics("digits").requests == 1, "probation judges this start alone"


def test_counts_are_kept_for_a_while() -> None:
    time_s = 100.0
    plane = DataPlane(clock=lambda: time_s)
    plane.install("m", doubling(Doubling()))
    plane.install("m", doubling(Doubling(), version=2))
    time_s += KEPT_S - 1
    assert [version for _, version, _ in plane.replaced_snapshots()] == [1]
    time_s += 2
    assert plane.replaced_snapshots() == []
    plane.close()


def test_few_versions_are_kept_of_each_model_and_in_all() -> None:
    kept = ReplacedVersions()
    for version in range(10):
        kept.keep("a", version, counted(version), 0.0)
    assert [(version, each.predictions) for _, version, each in kept.snapshots(1.0)] == [
        (version, version) for version in range(10 - MAX_PER_MODEL, 10)
    ]
    for number in range(100):
        kept.keep(f"model-{number}", 1, counted(1), 0.0)
    found = list(kept.snapshots(1.0))
    assert len(found) == MAX_KEPT
    assert found[-1][0] == "model-99"
