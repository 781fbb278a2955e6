"""What a search is given, and what it returns.

Everything that comes out is a pydantic model, for it travels between processes as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from edge_agent.measure import Comparison, Measurement
from edge_agent.runtime import Tensors
from edge_agent.wire.manifest import CostModel, ImageSpec, SamplingSpec, StepSpec, TensorSpec
from optimizer.budget import Budget, MetricName, Outcome
from optimizer.errors import BudgetNotMet
from optimizer.evaluate import Accuracy, EvalData
from optimizer.space import Axes

if TYPE_CHECKING:
    from optimizer.fine_tuning import Trainer

Fidelity = Literal["probe", "quick", "full"]
"""How carefully a candidate was looked at: a few runs, some, or as a verdict needs."""


@dataclass(frozen=True)
class TrainedMember:
    """A trained member of the family, exported.

    Attributes:
        onnx_path: fp32, with a free batch axis.
        parent: member that this one was derived from; empty for one of the family itself.
        checkpoint: its weights, where they are at hand.
        notes: how it was derived; they go into the notes of its candidates.
    """

    name: str
    onnx_path: Path
    parent: str = ""
    checkpoint: Path | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class OptimizeTask:
    """One search.

    Attributes:
        profiles: budget by the name of the hardware profile.
        pipeline: steps in their order; "model" is the network.
        inputs: interface of the pipeline, as are `outputs`.
        image: how devices take images for the model.
        code: step files that are shipped with each bundle; their names must differ.
        calibration: inputs of the pipeline that quantisers take their ranges from; no labels.
        data: labelled inputs by which variants are compared.
        golden: inputs of which each bundle carries its own known answers.
        out_dir: receives `PROFILE/MEMBER-RECIPE/`, one unpacked bundle each.
        quick: measure just long enough to choose; figures say so.
        primary: the metric that `max_accuracy_drop_points` and the choice go by.
        recipes: names and configs; empty tries every registered recipe.
        parent_dir: unpacked bundles of the version that the members were retrained from, laid out
            like `out_dir`; quantisers keep their scales where they fit.
        axes: what is varied beside recipes; `None` for everything, or in quick mode for nothing.
        exhaustive: measure every point in full, to know what a search should have found.
        time_limit_s: begin nothing more after that; what was found until then is judged.
        cache_dir: keeps finished work between searches; `None` keeps it for this search only.
        trainer: trains members further, for the recipes that need it.
        notes: on members that are not there, one line each; handed on with the result.
    """

    model: str
    version: int
    members: tuple[TrainedMember, ...]
    profiles: Mapping[str, Budget]
    pipeline: tuple[StepSpec, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    calibration: Tensors
    data: EvalData
    golden: Tensors
    out_dir: Path
    image: ImageSpec | None = None
    code: tuple[Path, ...] = ()
    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    privacy: tuple[StepSpec, ...] = ()
    quick: bool = False
    primary: MetricName = "macro_f1"
    recipes: tuple[StepSpec, ...] = ()
    seed: int = 0
    parent_dir: Path | None = None
    axes: Axes | None = None
    exhaustive: bool = False
    time_limit_s: float | None = None
    cache_dir: Path | None = None
    trainer: Trainer | None = None
    notes: tuple[str, ...] = ()


class Progress(BaseModel):
    """How far a search is; `fraction` never falls.

    Attributes:
        left_s: seconds that are left, estimated; `None` while nothing can be said.
    """

    model_config = ConfigDict(frozen=True)

    fraction: float
    text: str
    left_s: float | None = None


class Candidate(BaseModel):
    """One variant on one profile: a point of the frontier.

    Attributes:
        name: see `optimizer.space`; always `MEMBER/…`.
        threads: intra-op threads of each instance.
        instances: requests that it runs at the same time.
        fidelity: how carefully it was measured; only "full" can PASS.
        predicted: the figures were not taken on a machine of the profile but foretold.
        measured_on: the machine or device that the figures were taken on; empty if none.
        comparison: with the reference member in fp32 on ONNX Runtime, timed in turns in one run;
            of those that were about to be chosen.
        max_qps: the highest rate at which the budget's latency holds, where it was sought.
        parent: the candidate, or for a derived member the member, that this one was derived from;
            empty if none.
        precision: what the runtime reports; of the recipe where it was not opened.
        reason: which bounds are missed, or why the variant could not be judged; empty for PASS.
        notes: what the figures do not say, such as being taken on a faster CPU than the profile's.
        distance: sum of the relative overshoots of missed bounds.
        latency_ms: at the budget's percentile.
        on_frontier: no other variant of the profile is both better and faster.
        bundle_dir: unpacked bundle; `None` where there is none to serve.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: str
    name: str
    member: str
    recipe: str
    runtime: str
    precision: str
    threads: int = 1
    instances: int = 1
    fidelity: Fidelity = "full"
    predicted: bool = False
    measured_on: str = ""
    comparison: Comparison | None = None
    max_qps: float | None = None
    parent: str = ""
    verdict: Outcome
    reason: str = ""
    notes: tuple[str, ...] = ()
    distance: float = 0.0
    latency_ms: float | None = None
    memory_mib: float | None = None
    artifact_kib: float | None = None
    measurement: Measurement | None = None
    server: Measurement | None = None
    cost: CostModel | None = None
    accuracy: Accuracy | None = None
    on_frontier: bool = False
    selected: bool = False
    bundle_dir: Path | None = None


class OptimizeResult(BaseModel):
    """All candidates of all profiles.

    Attributes:
        baselines: the primary metric of each member before any recipe.
        selected: name of the chosen variant by profile; a profile without one is missing.
        unmet: by profile without a chosen variant: one line that names the nearest miss.
        environment: versions and CPU flags of the machine that evaluated and measured.
        notes: on members that were left out before the search.
        agreement: there were no labels: the right answers are those of the network in fp32.
        points: different points of the search, those of the same files counted once.
        measured: points that were measured in full.
        duration_s: how long the search took.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    version: int
    primary: MetricName
    quick: bool
    seed: int
    budgets: dict[str, Budget]
    baselines: dict[str, float]
    candidates: tuple[Candidate, ...]
    selected: dict[str, str]
    unmet: dict[str, str]
    environment: dict[str, str]
    notes: tuple[str, ...] = ()
    agreement: bool = False
    points: int = 0
    measured: int = 0
    duration_s: float = 0.0

    @property
    def measured_fraction(self) -> float:
        """Share of the points that were measured in full."""
        return self.measured / self.points if self.points else 0.0

    def chosen(self, profile: str) -> Candidate:
        """The selected candidate of `profile`.

        Raises:
            BudgetNotMet: there is none.
        """
        for candidate in self.candidates:
            if candidate.profile == profile and candidate.selected:
                return candidate
        raise BudgetNotMet(profile, self.unmet.get(profile, f"no variant of profile '{profile}'"))

    def require_budgets(self) -> None:
        """Raise for the first profile whose budget no variant meets.

        Raises:
            BudgetNotMet: names the nearest miss.
        """
        for profile in self.budgets:
            self.chosen(profile)
