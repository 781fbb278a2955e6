"""Jobs as people see them: success, mistakes, cancellation, budgets, crashes of the worker."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from cloud.db.tables import GateDecision, Job, ModelVersion, Variant
from edge_agent.wire.manifest import MANIFEST_NAME

if TYPE_CHECKING:
    from tests.jobs.conftest import ControlPlane, Tiny

pytestmark = pytest.mark.slow


def versions(plane: ControlPlane, model: str) -> list[ModelVersion]:
    with plane.sessions() as session:
        return list(session.scalars(select(ModelVersion).where(ModelVersion.model == model)))


def test_a_build_ends_in_a_candidate(plane: ControlPlane, tiny: Tiny) -> None:
    plane.apply(tiny.directory)
    job = plane.run("build", tiny.name)
    assert (job.state, job.error, job.progress) == ("succeeded", "", 1.0)
    (version,) = versions(plane, tiny.name)
    assert (version.state, version.job, version.parent_version) == ("candidate", job.id, None)
    assert version.environment["packages"]["torch"]
    with plane.sessions() as session:
        (variant,) = session.scalars(select(Variant).where(Variant.model == tiny.name))
        gates = list(
            session.scalars(
                select(GateDecision).where(GateDecision.subject == f"model:{tiny.name}:1")
            )
        )
    assert (variant.name, variant.verdict, variant.selected) == ("only/fp32", "PASS", True)
    assert MANIFEST_NAME.encode() in plane.blobs.get(str(variant.bundle_sha))[:100]
    assert b"<html" in plane.blobs.get(job.result["report_html"])
    assert [gate.gate for gate in gates] == ["this-machine/recall_floors"]
    assert job.result["members"]["only"]["macro_f1"] > 0.9
    plane.wait_for(lambda: not (plane.directory / "work" / job.id).exists(), 10)


def test_the_same_work_is_not_done_again(plane: ControlPlane, tiny: Tiny) -> None:
    plane.apply(tiny.directory)
    first = plane.run("build", tiny.name)
    calls = tiny.calls()
    second = plane.run("build", tiny.name)
    assert second.state == "succeeded", second.error
    assert tiny.calls()[len(calls) :] == ["load"]  # data may change without the code
    assert first.result["dataset"] == second.result["dataset"]
    assert second.result["version"] == first.result["version"] + 1


def test_a_mistake_in_the_projects_code_is_one_line(plane: ControlPlane, tiny: Tiny) -> None:
    tiny.write(data="def load():\n    raise KeyError('colour')\n")
    plane.apply(tiny.directory)
    job = plane.run("build", tiny.name)
    assert (job.state, job.error) == ("failed", "data.py:2: KeyError: 'colour'")
    log = plane.directory / "logs" / "jobs" / f"{job.id}.log"
    assert "Traceback" in log.read_text()
    assert versions(plane, tiny.name) == []


def test_a_budget_that_nothing_meets_names_the_nearest_miss(
    plane: ControlPlane, tiny: Tiny
) -> None:
    tiny.write(yaml=("latency_ms: 100, percentile: 0.9", "artifact_kib: 0.5"))
    plane.apply(tiny.directory)
    job = plane.run("build", tiny.name)
    assert job.state == "failed"
    assert "only/fp32" in job.error
    assert "0.5 KiB" in job.error
    assert b"<html" in plane.blobs.get(job.result["report_html"])
    assert versions(plane, tiny.name) == []


def test_a_project_that_was_never_applied_fails(plane: ControlPlane) -> None:
    job = plane.run("build", "nowhere")
    assert job.state == "failed"
    assert "no project" in job.error


def test_nothing_is_retrained_without_a_champion(plane: ControlPlane, tiny: Tiny) -> None:
    plane.apply(tiny.directory)
    job = plane.run("retrain", tiny.name)
    assert job.state == "failed"
    assert "no champion" in job.error


def test_a_cancelled_job_ends_its_process_and_registers_nothing(
    plane: ControlPlane, tiny: Tiny
) -> None:
    tiny.write(sleep=300)
    plane.apply(tiny.directory)
    job_id = plane.queue.enqueue("build", tiny.name)
    plane.wait_for(lambda: "build" in tiny.calls())
    plane.queue.cancel(job_id)
    plane.wait_for(lambda: not (plane.directory / "work" / job_id).exists(), 10)
    assert plane.job(job_id).state == "cancelled"
    tiny.write()
    plane.apply(tiny.directory)
    after: Job = plane.run("build", tiny.name)  # the worker is free again
    assert after.state == "succeeded", after.error
    assert len(versions(plane, tiny.name)) == 1


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_dies_is_resumed_at_the_step_it_was_in(
    fresh_plane: ControlPlane, tiny: Tiny, signum: signal.Signals
) -> None:
    plane = fresh_plane
    slow = "\n    open(COUNT + '.pid', 'w').write(str(__import__('os').getpid()))\n    "
    tiny.write(sleep=4)
    family = tiny.directory / "family.py"
    family.write_text(
        family.read_text().replace(
            "\n    time.sleep", slow.replace("COUNT", repr(str(tiny.count))) + "time.sleep"
        )
    )
    plane.apply(tiny.directory)
    plane.start_worker()
    job_id = plane.queue.enqueue("build", tiny.name)
    plane.wait_for(lambda: tiny.calls() == ["load", "build"])
    pid_file = Path(f"{tiny.count}.pid")
    child = int(plane.wait_for(lambda: pid_file.exists() and pid_file.read_text()))
    plane.stop_worker(signum)
    plane.wait_for(lambda: not plane.alive(child), 10)
    assert plane.job(job_id).state == "running"
    plane.start_worker()
    job = plane.finish(job_id)
    assert job.state == "succeeded", job.error
    # once loaded; built when killed, again when resumed, and for the export
    assert tiny.calls() == ["load", "build", "build", "build"]
    assert len(versions(plane, tiny.name)) == 1
