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


def rungs(plane: ControlPlane) -> list[dict[str, Any]]:
    """Answers of all trainings of races that came to an end."""
    with plane.sessions() as session:
        rows = session.scalars(select(StepResult).where(StepResult.step == "rung"))
        return [dict(row.result) for row in rows]


@pytest.mark.timeout(500)
def test_a_race_that_is_killed_goes_on_and_what_is_derived_is_in_the_report(
    fresh_plane: ControlPlane, tiny: Tiny
) -> None:
    plane = fresh_plane
    tiny.write(yaml=(MEMBERS, "search: {width: [1, 4, 16]}"), sleep=0.5)
    path = tiny.directory / "skerry.yaml"
    text = path.read_text() + "derive: [distil, prune: {share: 0.5, epochs: 3}]\n"
    path.write_text(text.replace("epochs: 20", "epochs: 6, halving: {first_epochs: 4, keep: 0.6}"))
    plane.apply(tiny.directory)
    plane.start_worker()
    job_id = plane.queue.enqueue("build", tiny.name)
    # three are probed and one is trained; the second is being built for its training
    plane.wait_for(lambda: tiny.calls().count("build") == 5, 300)
    plane.stop_worker(signal.SIGKILL)
    (done,) = rungs(plane)
    plane.start_worker()
    job = plane.finish(job_id, 400)
    assert job.state == "succeeded", job.error

    trained = rungs(plane)
    assert sorted(answer["epochs"] for answer in trained) == [4, 4, 4, 6, 6]
    assert done["checkpoint_sha"] in {answer["checkpoint_sha"] for answer in trained}
    # probing, trainings, the killed one, parent, teacher and a new one for each derived, export
    assert tiny.calls().count("build") == 3 + 5 + 1 + 2 * 3 + 4

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


def test_of_a_family_none_of_which_can_be_trained_each_is_named(
    plane: ControlPlane, tiny: Tiny
) -> None:
    tiny.write(yaml=(MEMBERS, "search: {width: [1, 2]}"))
    path = tiny.directory / "skerry.yaml"
    tight = path.read_text().replace("latency_ms: 100, percentile: 0.9", "artifact_kib: 1e-3")
    path.write_text(tight)
    plane.apply(tiny.directory)
    job = plane.run("build", tiny.name)
    assert job.state == "failed"
    assert "no member is left to be trained: width1: not trained: this-machine: " in job.error
    assert "times 0.001 KiB" in job.error
