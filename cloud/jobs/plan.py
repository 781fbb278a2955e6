"""What a job is about, fixed in its first step, and the order and weight of its steps."""

from __future__ import annotations

from typing import Final, TypeAlias

from pydantic import BaseModel, ConfigDict

from cloud.jobs.records import Kind
from edge_agent.wire.manifest import StepSpec
from optimizer.halving import Rules

WEIGHTS: Final = {
    "dataset": 1.0,
    "probe": 1.0,
    "train": 3.0,  # all members together
    "derive": 2.0,  # so are these
    "export": 2.0,
    "optimize": 6.0,
    "gates": 1.0,
    "register": 0.2,
}
"""Relative durations, for the progress that people see."""

Within: TypeAlias = tuple[float, float]
"""Where a part of a step starts and how much of it it is, both 0..1."""

WHOLE: Final[Within] = (0.0, 1.0)


class Plan(BaseModel):
    """See the module.

    Attributes:
        code_sha: blob with the project's files, as applied when the job started.
        version: number reserved for what the job builds.
        champion: version that it is to replace; `None` for a first one.
        base_dataset: dataset version that a retraining builds upon.
        warm_start: blobs with the champion's weights by member.
        members: names in the family's order.
        halving: by which rules they race; `None` where each is trained in full.
        derive: what is made of the trained ones.
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
    halving: Rules | None = None
    derive: tuple[StepSpec, ...] = ()
    quick: bool = False

    def steps(self) -> list[str]:
        """Names of the steps after this one; those whose number is not known yet as one."""
        trained = [f"train:{member}" for member in self.members]
        if self.halving is not None:
            trained = ["probe", "train"]
        derived = ["derive"] if self.derive else []
        return ["dataset", *trained, *derived, "export", "optimize", "gates", "register"]

    def place(self, step: str, within: Within = WHOLE) -> tuple[float, float]:
        """Where `step` starts within the whole and how much of it it is, both 0..1.

        Args:
            within: of a step that is one of several under one name, its part.
        """
        sizes = {name: self._weight(name) for name in self.steps()}
        total = sum(sizes.values())
        before = 0.0
        for name, size in sizes.items():
            if name in (step, step.partition(":")[0]):
                return (before + within[0] * size) / total, within[1] * size / total
            before += size
        raise ValueError(f"no step {step!r}")

    def _weight(self, step: str) -> float:
        kind = step.split(":")[0]
        return WEIGHTS[kind] / (len(self.members) if kind == "train" and kind != step else 1)
