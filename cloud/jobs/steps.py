"""The steps of a job.  Each takes a plan and earlier results, and returns small JSON.

A step may be run again after a crash: what it writes is content-addressed, cached by its inputs, or
written in one transaction that is harmless to repeat.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, cast

from cloud import datasets
from cloud.db.tables import Job, ModelVersion
from cloud.db.tables import Project as ProjectRow
from cloud.jobs.cache import Result
from cloud.jobs.errors import StepFailed
from cloud.jobs.judging import judge
from cloud.jobs.members import Members
from cloud.jobs.networks import NetworkSteps
from cloud.jobs.optimized import optimize, parent_bundles, variant_records
from cloud.jobs.plan import Plan
from cloud.jobs.registering import environment, gate_results, model_metrics
from cloud.jobs.workplace import Desk
from cloud.lab import predictions
from cloud.project import Project, read_packed
from cloud.registry import models as registry
from cloud.training.arrays import Rows
from optimizer.halving import Bounds, Rules
from optimizer.profiles import Host, load_profile

log = logging.getLogger("skerry.jobs")


class Steps(NetworkSteps):
    """Steps on one control plane."""

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
            warm_start = _checkpoints(champion) if job.kind == "retrain" else {}
            members, halving = who_trains(project, warm_start)
            return Plan(
                job_id=job_id,
                kind=cast(Any, job.kind),
                project=project.name,
                model=project.model,
                code_sha=row.code_sha,
                version=registry.reserve_version(session, project.model, job_id),
                champion=champion.version if champion is not None else None,
                base_dataset=champion.dataset if champion is not None else None,
                warm_start=warm_start,
                members=members,
                halving=halving,
                derive=project.derive,
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

    # ── variants ─────────────────────────────────────────────────────────────────────────────────

    def optimize(self, plan: Plan, dataset: str, exported: Result, members: Members) -> Result:
        """Candidates of every profile with their bundles, and the report."""
        desk, rows = self.open_search(plan, dataset)
        with self._readers() as session:
            parents = parent_bundles(session, plan)
            learned = predictions.as_json(session, list(desk.project.profiles))
        kept = {place: sha for place, sha in parents.items() if desk.blobs.has(sha)}
        return optimize(desk, plan, rows, exported, members, kept, learned)

    def open_search(self, plan: Plan, dataset: str) -> tuple[Desk, str]:
        """The desk of the search, and the path of the rows on it."""
        desk = self._desk(plan, "optimize")
        return desk, self._rows(desk, dataset)

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
        members: Members,
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
            "members": {name: answer["metrics"] for name, answer in members.trained.items()},
            "selected": optimized["selected"],
            "report_html": optimized["report_html_sha"],
            "report_json": optimized["report_json_sha"],
        }
        if members.notes:
            result["notes"] = list(members.notes)
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
                metrics=model_metrics(members.trained, optimized),
                environment=environment(),
                variants=variant_records(optimized),
                gates=gates,
                parent_version=plan.champion,
            )
        log.info("job.succeeded job=%s model=%s version=%d", plan.job_id, plan.model, plan.version)
        return result


def _checkpoints(champion: ModelVersion | None) -> dict[str, str]:
    members = champion.metrics.get("members", {}) if champion is not None else {}
    return {
        name: str(answer["checkpoint_sha"])
        for name, answer in members.items()
        if "checkpoint_sha" in answer
    }


def who_trains(
    project: Project, warm_start: Mapping[str, str]
) -> tuple[tuple[str, ...], Rules | None]:
    """Who is trained, and by which rules where they race.

    A retraining goes on with those that the champion's race left.
    """
    names = tuple(member.name for member in project.family.all())
    if project.halving is None:
        return names, None
    left = tuple(name for name in names if name in warm_start)
    if left:
        return left, None
    here = Host.here().machine
    bounds = {
        profile: Bounds(
            latency_ms=budget.latency_ms if load_profile(profile).machine == here else None,
            artifact_kib=budget.artifact_kib,
        )
        for profile, budget in project.profiles.items()
    }
    return names, Rules(spec=project.halving, epochs=project.training.epochs, profiles=bounds)
