"""What a job is about, fixed in its first step, and the order and weight of its steps."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict

from cloud.jobs.records import Kind

WEIGHTS: Final = {
    "dataset": 1.0,
    "train": 3.0,  # all members together
    "export": 2.0,
    "optimize": 6.0,
    "gates": 1.0,
    "register": 0.2,
}
"""Relative durations, for the progress that people see."""


class Plan(BaseModel):
    """See the module.

    Attributes:
        code_sha: blob with the project's files, as applied when the job started.
        version: number reserved for what the job builds.
        champion: version that it is to replace; `None` for a first one.
        base_dataset: dataset version that a retraining builds upon.
        warm_start: blobs with the champion's weights by member.
        members: names in the family's order.
        quick: shortened measurements.
    """

    model_config = ConfigDict(frozen=True)

    job_id: str
    kind: Kind
    project: str
    model: str
    code_sha: str
    version: int
    champion: int | None = None
    base_dataset: str | None = None
    warm_start: dict[str, str] = {}
    members: tuple[str, ...]
    quick: bool = False

    def steps(self) -> list[str]:
        """Names of the steps after this one."""
        trained = [f"train:{member}" for member in self.members]
        return ["dataset", *trained, "export", "optimize", "gates", "register"]

    def place(self, step: str) -> tuple[float, float]:
        """Where `step` starts within the whole and how much of it it is, both 0..1."""
        sizes = {name: self._weight(name) for name in self.steps()}
        total = sum(sizes.values())
        before = 0.0
        for name, size in sizes.items():
            if name == step:
                return before / total, size / total
            before += size
        raise ValueError(f"no step {step!r}")

    def _weight(self, step: str) -> float:
        kind = step.split(":")[0]
        return WEIGHTS[kind] / (len(self.members) if kind == "train" else 1)
