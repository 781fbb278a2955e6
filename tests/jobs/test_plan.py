"""Who is trained in a job, and which part of its progress each step is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cloud.jobs.plan import Plan
from cloud.jobs.steps import who_trains
from cloud.project import Project, load_project
from edge_agent.wire.manifest import StepSpec
from optimizer.halving import Bounds, Rules

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture
def searched(tmp_path: Path) -> Project:
    """The example with a grid, on this machine and on a board of another architecture."""
    directory = tmp_path / "digits"
    shutil.copytree(DIGITS, directory)
    path = directory / "skerry.yaml"
    text = path.read_text().replace("generic-x86-64:", "raspberry-pi-5:")
    path.write_text(
        text.replace("  members:", "  search: {channels: [8, 16], hidden: 32}\n  members:")
    )
    return load_project(directory)


def test_members_that_are_written_down_are_trained_in_full() -> None:
    assert who_trains(load_project(DIGITS), {}) == (("small", "large"), None)


def test_a_searched_family_races_by_what_can_be_known_of_each_budget(searched: Project) -> None:
    names, rules = who_trains(searched, {})
    assert names == ("small", "large", "channels8", "channels16")
    assert rules is not None
    assert rules.epochs == 14
    assert rules.profiles["this-machine"] == Bounds(latency_ms=10.0)
    # what this machine takes says nothing about a board of another architecture
    assert rules.profiles["raspberry-pi-5"] == Bounds(artifact_kib=100)


def test_a_retraining_goes_on_with_whom_the_champions_race_left(searched: Project) -> None:
    champion = {"channels16": "sha", "large": "sha", "large-pruned50": "sha"}
    assert who_trains(searched, champion) == (("large", "channels16"), None)


def plan(**fields: object) -> Plan:
    known = {"job_id": "j", "kind": "build", "project": "p", "model": "m", "code_sha": "c"}
    return Plan.model_validate({**known, "version": 1, "members": ("a", "b"), **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"derive": (StepSpec(name="prune"),)},
        {
            "halving": Rules(epochs=4, profiles={"this-machine": Bounds()}),
            "derive": (StepSpec(name="prune"),),
        },
    ],
)
def test_the_steps_of_a_job_fill_its_progress_without_gaps(fields: dict[str, object]) -> None:
    ours = plan(**fields)
    end = 0.0
    for step in ours.steps():
        start, share = ours.place(step)
        assert start == pytest.approx(end)
        end = start + share
    assert end == pytest.approx(1.0)


def test_trainings_of_a_race_and_derived_members_lie_within_their_step() -> None:
    ours = plan(halving=Rules(epochs=4, profiles={"x": Bounds()}), derive=(StepSpec(name="prune"),))
    start, share = ours.place("train")
    assert ours.place("train:a@2", (0.5, 0.25)) == pytest.approx((start + share / 2, share / 4))
    start, share = ours.place("derive")
    assert ours.place("derive:a-pruned50", (0.5, 0.5)) == pytest.approx(
        (start + share / 2, share / 2)
    )
