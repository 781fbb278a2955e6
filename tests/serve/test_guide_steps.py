"""The pipeline that the guide shows, served: what it refuses, and how that is told and counted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from edge_agent.pipeline import outlier
from edge_agent.wire.manifest import StepSpec, TensorSpec
from tests.runtime.networks import LABEL, images, write_bundle

from .conftest import Running, serve_bundle
from .gates import alter
from .test_metrics import parsed

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "serving.md"
PREDICT = "/v2/models/digits/predict"


def guide_steps(reference: outlier.Gaussian) -> tuple[StepSpec, ...]:
    """The steps of the guide's example, with a reference where it has dots."""
    block = re.search(r"```yaml\n(pipeline:.*?)```", GUIDE.read_text(), re.DOTALL)
    assert block
    steps = []
    for given in yaml.safe_load(block[1])["pipeline"]:
        [(name, config)] = given.items() if isinstance(given, dict) else [(given, {})]
        if "reference" in config:
            config["reference"] = reference.model_dump()
        steps.append(StepSpec(name=name, config=config))
    return tuple(steps)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The guide's example, its reference fitted on noise."""
    directory = tmp_path_factory.mktemp("guide")
    steps = guide_steps(outlier.fit(images(500, seed=1)))
    manifest = write_bundle(directory, steps=steps, cost_us=50, with_golden=False)
    grade = TensorSpec(name="grade", datatype="INT64", shape=(-1,))
    score = TensorSpec(name="score", datatype="FP32", shape=(-1,))
    alter(directory, manifest, outputs=(LABEL, score, grade))
    yield from serve_bundle(directory)


def ask(serving: Running, values: np.ndarray[Any, Any]) -> Any:
    return serving.ask("POST", PREDICT, {"instances": values.tolist()})


def test_what_looks_like_the_training_data_is_answered(serving: Running) -> None:
    values = images(50, seed=2)
    answers = [ask(serving, item[None]) for item in values]
    answered = [each for each in answers if each.status == 200]
    assert len(answered) > 30, [each.body for each in answers]
    for reply in answered:
        [item] = reply.json["predictions"]
        assert item["grade"] == (item["score"] >= 0.5) + (item["score"] >= 0.9)
        if item["score"] > 0.99:
            assert item["label"] == "7", "the rule knows better"
    assert any(each.json["predictions"][0]["score"] > 0.99 for each in answered)


STRIPES = np.zeros((1, 8, 8), np.float32)
STRIPES[:, ::2] = 16
FAINT = np.full((1, 8, 8), 8, np.float32)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (FAINT - 7, "too_dark"),
        (FAINT + 7, "too_bright"),
        (FAINT + 9, "out_of_range"),
        (FAINT, "blurred"),
        (STRIPES, "out_of_distribution"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_is_refused_with_its_reason_which_is_counted(
    values: np.ndarray[Any, Any], reason: str, serving: Running
) -> None:
    def count() -> float:
        text = serving.ask("GET", "/metrics").body.decode()
        samples = parsed(text)["skerry_rejected_total"].samples
        labels = (("model", "digits"), ("version", "1"), ("reason", reason))
        return samples.get(("", labels), 0)

    before = count()
    reply = ask(serving, values)
    assert reply.status == 400
    assert reply.error.startswith(f"rejected: {reason}: ")
    assert count() == before + 1


def test_who_is_sure_of_nothing_is_refused_behind_the_model(tmp_path: Path) -> None:
    """Only zeros leave every class alike; checkers of the input would refuse them before."""
    steps = tuple(
        step
        for step in guide_steps(outlier.fit(images(500)))
        if step.name not in ("check.brightness", "check.blur", "check.outlier")
    )
    manifest = write_bundle(tmp_path, steps=steps, with_golden=False)
    alter(tmp_path, manifest, outputs=(LABEL,))
    for serving in serve_bundle(tmp_path):
        reply = ask(serving, np.zeros((1, 8, 8)))
        assert (reply.status, reply.error) == (
            400,
            "rejected: out_of_distribution: the energy is -2.30259, most is -2.5",
        )
        assert ask(serving, images(1)).status == 200
