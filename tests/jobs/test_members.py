"""Families that are searched, raced and derived from, on a real worker."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from cloud.db.tables import ModelVersion, StepResult, Variant

if TYPE_CHECKING:
    from tests.jobs.conftest import ControlPlane, Tiny

pytestmark = pytest.mark.slow

MEMBERS = "members: {only: {width: 4}}"
GRID = "search: {width: [1, 4, 16]}"


def steps(plane: ControlPlane, name: str) -> list[dict[str, Any]]:
    """Answers of all steps of that name that were ever computed."""
    with plane.sessions() as session:
        rows = session.scalars(select(StepResult).where(StepResult.step == name))
        return [dict(row.result) for row in rows]


def test_a_grid_is_raced_then_derived_from_and_all_of_it_is_in_the_report(
    plane: ControlPlane, tiny: Tiny
) -> None:
    tiny.write(yaml=(MEMBERS, GRID))
    path = tiny.directory / "skerry.yaml"
    text = path.read_text() + "derive: [distil, prune: {share: 0.5, epochs: 3}]\n"
    path.write_text(text.replace("epochs: 20", "epochs: 6, halving: {first_epochs: 4, keep: 0.6}"))
    plane.apply(tiny.directory)
    job = plane.run("build", tiny.name)
    assert job.state == "succeeded", job.error

    with plane.sessions() as session:
        version = session.scalars(select(ModelVersion).where(ModelVersion.model == tiny.name)).one()
        variants = {
            variant.name: variant
            for variant in session.scalars(select(Variant).where(Variant.model == tiny.name))
        }
    members = version.metrics["members"]
    left_out = job.result["notes"]
    assert len(left_out) == 1 and "left behind after 4 of 6 epochs" in left_out[0]
    assert sorted(name.partition("-")[2] for name in members) == ["", "", "distilled", "pruned50"]
    assert {name.split("/")[0] for name in variants} == set(members)
    pruned = next(name for name in members if name.endswith("-pruned50"))
    notes = variants[f"{pruned}/fp32"].measurement["notes"]
    assert any(note.startswith("derived from width") for note in notes)
    report = json.loads(plane.blobs.get(job.result["report_json"]))
    assert report["notes"] == left_out
    assert sorted(answer["epochs"] for answer in steps(plane, "rung")) == [4, 4, 4, 6, 6]


def test_a_worker_that_dies_in_a_race_trains_nothing_twice(
    fresh_plane: ControlPlane, tiny: Tiny
) -> None:
    plane = fresh_plane
    tiny.write(yaml=(MEMBERS, "search: {width: [1, 4]}"), sleep=1)
    path = tiny.directory / "skerry.yaml"
    path.write_text(path.read_text().replace("epochs: 20", "epochs: 4"))
    plane.apply(tiny.directory)
    plane.start_worker()
    job_id = plane.queue.enqueue("build", tiny.name)
    # probed each once, then trained: the second member of the first rung is being built
    plane.wait_for(lambda: tiny.calls().count("build") == 4)
    plane.stop_worker(signal.SIGKILL)
    done = {answer["checkpoint_sha"] for answer in steps(plane, "rung")}
    assert len(done) == 1
    plane.start_worker()
    job = plane.finish(job_id)
    assert job.state == "succeeded", job.error
    answers = steps(plane, "rung")
    assert done <= {answer["checkpoint_sha"] for answer in answers}
    # 2 were probed, one for each training that ended, the killed one, and one for the export
    assert tiny.calls().count("build") == 2 + len(answers) + 1 + len(job.result["members"])


def test_of_a_family_none_of_which_can_be_trained_each_is_named(
    plane: ControlPlane, tiny: Tiny
) -> None:
    tiny.write(yaml=(MEMBERS, "search: {width: [1, 2]}"))
    path = tiny.directory / "skerry.yaml"
    path.write_text(
        path.read_text().replace("latency_ms: 100, percentile: 0.9", "artifact_kib: 1e-3")
    )
    plane.apply(tiny.directory)
    job = plane.run("build", tiny.name)
    assert job.state == "failed"
    assert "no member is left to be trained: width1: not trained: this-machine: " in job.error
    assert "times 0.001 KiB" in job.error
