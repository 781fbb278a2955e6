"""The steps of a job.  Each takes a plan and earlier results, and returns small JSON.

A step may be run again after a crash: what it writes is content-addressed, cached by its inputs, or
written in one transaction that is harmless to repeat.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, cast

from pydantic import JsonValue

from cloud import datasets
from cloud.db.engine import Sessions, read_only
from cloud.db.tables import Job, ModelVersion
from cloud.db.tables import Project as ProjectRow
from cloud.jobs.cache import Result, StepCache
from cloud.jobs.errors import StepFailed
from cloud.jobs.judging import judge
from cloud.jobs.optimized import optimize, parent_bundles, variant_records
from cloud.jobs.plan import Plan
from cloud.jobs.registering import environment, gate_results, model_metrics
from cloud.jobs.workplace import Desk, Workplace
from cloud.project import Project, read_packed
from cloud.registry import models as registry
from cloud.training.arrays import Rows

log = logging.getLogger("skerry.jobs")


class Steps:
    """Steps on one control plane."""

    def __init__(self, sessions: Sessions, place: Workplace, cache: StepCache) -> None:
        self._sessions = sessions
        self._readers = read_only(sessions)
        self._place = place
        self._cache = cache

    # ── plan ─────────────────────────────────────────────────────────────────────────────────────

    def prepare(self, job_id: str) -> Result:
        """Fix what the job is about: code, version number, champion."""
        self._place.records.progress(job_id, "prepare", 0.0)
        with self._sessions.begin() as session:
            job = session.get(Job, job_id)
            row = session.get(ProjectRow, job.project) if job is not None else None
            if job is None or row is None:
                raise StepFailed(f"there is no project for job {job_id}")
            project = read_packed(self._place.blobs.get(row.code_sha))
            champion = registry.champion(session, project.model)
            if job.kind == "retrain" and champion is None:
                raise StepFailed(
                    f"model {project.model!r} has no champion to retrain; build and publish one"
                )
            return Plan(
                job_id=job_id,
                kind=cast(Any, job.kind),
                project=project.name,
                model=project.model,
                code_sha=row.code_sha,
                version=registry.reserve_version(session, project.model, job_id),
                champion=champion.version if champion is not None else None,
                base_dataset=champion.dataset if champion is not None else None,
                warm_start=_checkpoints(champion) if job.kind == "retrain" else {},
                members=tuple(project.family.members),
                quick=bool(job.params.get("quick", False)),
            ).model_dump(mode="json")

    # ── data ─────────────────────────────────────────────────────────────────────────────────────

    def dataset(self, plan: Plan) -> Result:
        """The dataset version to train and judge on."""
        if plan.kind == "retrain":
            return self._field_dataset(plan)
        desk = self._desk(plan, "dataset")
        desk.child("load")
        rows = Rows.open(desk.directory / "data.npz")
        spec = desk.project.dataset
        table = datasets.tabulate(
            rows.inputs,
            rows.labels,
            classes=desk.project.labels,
            golden_share=spec.golden_share,
            eval_share=spec.eval_share,
            seed=spec.seed,
        )
        with self._sessions.begin() as session:
            version = datasets.create(
                session, self._place.blobs, plan.project, "labelled", table, note=spec.load
            )
            return {"dataset": version.id, "rows": version.rows}

    def _field_dataset(self, plan: Plan) -> Result:
        self._place.records.progress(
            plan.job_id, "dataset: field samples", plan.place("dataset")[0]
        )
        if plan.base_dataset is None:
            raise StepFailed("the champion has no dataset to build upon")
        with self._sessions.begin() as session:
            version = datasets.collect_field(
                session, self._place.blobs, plan.project, plan.model, plan.base_dataset
            )
            return {"dataset": version.id, "rows": version.rows}

    # ── networks ─────────────────────────────────────────────────────────────────────────────────

    def train(self, plan: Plan, dataset: str, member: str) -> Result:
        """Fit one member; its weights are a blob."""
        desk = self._desk(plan, f"train:{member}")
        warm = plan.warm_start.get(member)

        def compute() -> Result:
            path = None if warm is None else str(desk.fetch(warm, "parent.pt"))
            answer = desk.child(
                "fit", member=member, data=self._rows(desk, dataset), warm_start=path
            )
            checkpoint = desk.blobs.put_file(desk.directory / "checkpoint.pt")
            return {**answer, "checkpoint_sha": checkpoint}

        inputs: dict[str, JsonValue] = {
            **self._network_inputs(desk, dataset),
            "member": member,
            "params": dict(desk.project.family.members[member]),
            "training": desk.project.training.model_dump(mode="json"),
            "warm_start": warm,
        }
        return self._cache.once("train", inputs, compute)

    def export(self, plan: Plan, dataset: str, checkpoints: Mapping[str, str]) -> Result:
        """ONNX files of all members, as blobs by name."""
        desk = self._desk(plan, "export")

        def compute() -> Result:
            files: dict[str, JsonValue] = {
                member: str(desk.fetch(sha, f"{member}.pt")) for member, sha in checkpoints.items()
            }
            desk.child("export", data=self._rows(desk, dataset), checkpoints=files)
            onnx: list[JsonValue] = [
                {
                    "member": member,
                    "onnx_sha": desk.blobs.put_file(desk.directory / f"{member}.onnx"),
                }
                for member in checkpoints
            ]
            return {"members": onnx}

        inputs: dict[str, JsonValue] = {
            **self._network_inputs(desk, dataset),
            "family": desk.project.family.model_dump(mode="json"),
            "checkpoints": dict(checkpoints),
        }
        return self._cache.once("export", inputs, compute)

    def optimize(self, plan: Plan, dataset: str, exported: Result) -> Result:
        """Candidates of every profile with their bundles, and the report."""
        desk = self._desk(plan, "optimize")
        with self._readers() as session:
            parents = parent_bundles(session, plan)
        kept = {place: sha for place, sha in parents.items() if desk.blobs.has(sha)}
        return optimize(desk, plan, self._rows(desk, dataset), exported, kept)

    # ── judgement ────────────────────────────────────────────────────────────────────────────────

    def gates(self, plan: Plan, dataset: str, optimized: Result) -> Result:
        """The gates' results on each profile's selected variant, against the champion's."""
        desk = self._desk(plan, "gates")
        with self._readers() as session:
            return judge(session, desk, plan, self._rows(desk, dataset), optimized)

    def register(
        self,
        plan: Plan,
        dataset: str,
        trained: Mapping[str, Result],
        optimized: Result,
        judged: Result,
    ) -> Result:
        """Register the candidate and end the job, in one transaction."""
        start, _ = plan.place("register")
        self._place.records.progress(plan.job_id, "register", start)
        gates = gate_results(judged)
        result: Result = {
            "model": plan.model,
            "version": plan.version,
            "dataset": dataset,
            "gates": judged["verdict"],
            "members": {name: answer["metrics"] for name, answer in trained.items()},
            "selected": optimized["selected"],
            "report_html": optimized["report_html_sha"],
            "report_json": optimized["report_json_sha"],
        }
        with self._sessions.begin() as session:
            if not self._place.records.finish(session, plan.job_id, "succeeded", result=result):
                return {}  # cancelled in the meantime, or done before a crash
            registry.register_candidate(
                session,
                model=plan.model,
                version=plan.version,
                project=plan.project,
                dataset=dataset,
                code_sha=plan.code_sha,
                job=plan.job_id,
                metrics=model_metrics(trained, optimized),
                environment=environment(),
                variants=variant_records(optimized),
                gates=gates,
                parent_version=plan.champion,
            )
        log.info("job.succeeded job=%s model=%s version=%d", plan.job_id, plan.model, plan.version)
        return result

    # ── shared ───────────────────────────────────────────────────────────────────────────────────

    def _desk(self, plan: Plan, step: str) -> Desk:
        start, share = plan.place(step)
        self._place.records.progress(plan.job_id, step, start)
        return self._place.desk(plan.job_id, step, plan.code_sha, start, share)

    def _rows(self, desk: Desk, dataset: str) -> str:
        """Path of the dataset's rows as a file that a child can read."""
        path = desk.directory / "rows.npz"
        if not path.exists():
            with self._readers() as session:
                data = datasets.read(session, self._place.blobs, dataset)
            Rows(data.inputs, data.labels, data.split, data.weight).save(path)
        return str(path)

    def _network_inputs(self, desk: Desk, dataset: str) -> dict[str, JsonValue]:
        """What every network of the project depends on."""
        project: Project = desk.project
        return {
            "dataset": dataset,
            "code": desk.files_sha(*project.code, *project.steps),
            **project.part("pipeline", "inputs", "labels"),
            "build": project.family.build,
        }


def _checkpoints(champion: ModelVersion | None) -> dict[str, str]:
    members = champion.metrics.get("members", {}) if champion is not None else {}
    return {
        name: str(answer["checkpoint_sha"])
        for name, answer in members.items()
        if "checkpoint_sha" in answer
    }
