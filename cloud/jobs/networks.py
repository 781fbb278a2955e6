"""Steps that make networks: probing, training, deriving and exporting members.

Each is cached by what it depends on, so the same network is trained once, whichever job asks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from cloud import datasets
from cloud.db.engine import Sessions, read_only
from cloud.jobs.cache import Result, StepCache
from cloud.jobs.plan import WHOLE, Plan, Within
from cloud.jobs.workplace import Desk, Workplace
from cloud.project import Project
from cloud.training.arrays import Rows
from edge_agent.runtime import cpu_flags
from optimizer.derive import Wanted


class NetworkSteps:
    """See the module."""

    def __init__(self, sessions: Sessions, place: Workplace, cache: StepCache) -> None:
        self._sessions = sessions
        self._readers = read_only(sessions)
        self._place = place
        self._cache = cache

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

        inputs = self._training_inputs(desk, plan, dataset, member)
        return self._cache.once("train", inputs, compute)

    def probe(self, plan: Plan, dataset: str) -> Result:
        """What each untrained member costs: the race's entrants."""
        desk = self._desk(plan, "probe")

        def compute() -> Result:
            return desk.child("probe", data=self._rows(desk, dataset))

        inputs: dict[str, JsonValue] = {
            **self._network_inputs(desk, dataset),
            "family": _family(desk.project),
            "machine": [*cpu_flags(), str(len(os.sched_getaffinity(0)))],
        }
        return self._cache.once("probe", inputs, compute)

    def rung(
        self,
        plan: Plan,
        dataset: str,
        member: str,
        epochs: int,
        state: JsonValue,
        within: Within,
    ) -> Result:
        """Train a member until `epochs`, from the state of an earlier rung.

        Returns:
            As `train`, and `metric` and `state_sha`; or only `failure`.
        """
        desk = self._desk(plan, f"train:{member}@{epochs}", within)
        warm = plan.warm_start.get(member)

        def compute() -> Result:
            answer = desk.child(
                "fit",
                member=member,
                data=self._rows(desk, dataset),
                warm_start=None if warm is None else str(desk.fetch(warm, "parent.pt")),
                until=epochs,
                state=None if state is None else str(desk.fetch(str(state), "earlier.pt")),
            )
            if "failure" in answer:
                return answer
            files = {"checkpoint_sha": desk.directory / "checkpoint.pt"}
            if (left := desk.directory / "state.pt").exists():
                files["state_sha"] = left
            return {**answer, **{key: desk.blobs.put_file(path) for key, path in files.items()}}

        inputs: dict[str, JsonValue] = {
            **self._training_inputs(desk, plan, dataset, member),
            "epochs": epochs,
            "state": state,
        }
        answer = self._cache.once("rung", inputs, compute)
        metrics: Any = answer.get("metrics")
        if metrics is None:
            return answer
        return {**answer, "metric": metrics[desk.project.metrics.primary]}

    def derive(
        self,
        plan: Plan,
        dataset: str,
        wanted: Wanted,
        checkpoints: Mapping[str, str],
        within: Within,
    ) -> Result:
        """Make one member of trained ones; `failure` alone where they do not suit."""
        desk = self._desk(plan, f"derive:{wanted.name}", within)
        earlier = plan.warm_start.get(wanted.name)

        def compute() -> Result:
            files: dict[str, JsonValue] = {
                name: str(desk.fetch(sha, f"{name}.pt")) for name, sha in checkpoints.items()
            }
            answer = desk.child(
                "derive",
                data=self._rows(desk, dataset),
                wanted=wanted.model_dump(mode="json"),
                checkpoints=files,
                earlier=None if earlier is None else str(desk.fetch(earlier, "earlier.pt")),
            )
            if "failure" in answer:
                return answer
            checkpoint = desk.blobs.put_file(desk.directory / "checkpoint.pt")
            return {**answer, "checkpoint_sha": checkpoint}

        inputs: dict[str, JsonValue] = {
            **self._network_inputs(desk, dataset),
            "wanted": wanted.model_dump(mode="json"),
            "params": desk.project.family.params(wanted.parent),
            "training": _training(desk.project),
            "checkpoints": dict(checkpoints),
            "earlier": earlier,
        }
        return self._cache.once("derive", inputs, compute)

    def export(
        self,
        plan: Plan,
        dataset: str,
        checkpoints: Mapping[str, str],
        bases: Mapping[str, str],
    ) -> Result:
        """ONNX files of all members, as blobs by name."""
        desk = self._desk(plan, "export")

        def compute() -> Result:
            files: dict[str, JsonValue] = {
                member: str(desk.fetch(sha, f"{member}.pt")) for member, sha in checkpoints.items()
            }
            desk.child(
                "export", data=self._rows(desk, dataset), checkpoints=files, bases=dict(bases)
            )
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
            "family": _family(desk.project),
            "checkpoints": dict(checkpoints),
        }
        if bases:
            inputs["bases"] = dict(bases)
        return self._cache.once("export", inputs, compute)

    # ── shared ───────────────────────────────────────────────────────────────────────────────────

    def _desk(self, plan: Plan, step: str, within: Within = WHOLE) -> Desk:
        start, share = plan.place(step, within)
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

    def _training_inputs(
        self, desk: Desk, plan: Plan, dataset: str, member: str
    ) -> dict[str, JsonValue]:
        """What the training of a member depends on, however far it goes."""
        return {
            **self._network_inputs(desk, dataset),
            "member": member,
            "params": desk.project.family.params(member),
            "training": _training(desk.project),
            "warm_start": plan.warm_start.get(member),
        }


def _training(project: Project) -> JsonValue:
    """How members are trained, but not how many of them."""
    dumped: JsonValue = project.training.model_dump(mode="json", exclude={"halving"})
    return dumped


def _family(project: Project) -> JsonValue:
    """The family with every point of its search written out."""
    return {
        "build": project.family.build,
        "members": {member.name: member.params for member in project.family.all()},
        "outputs": list(project.family.outputs),
    }
