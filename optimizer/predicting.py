"""A measurer that foretells what it cannot measure: timed here, corrected for the profile.

Rules:
    * A profile whose match rule this machine fits is measured here, as `LocalMeasurer` does.
    * Any other one is timed here and predicted (`optimizer.predictor`): its figures are marked, the
      bounds stand beside them, and a comparison in turns is not claimed for it.
    * Memory is not predicted: it depends on the architecture and the runtime's build.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_agent.measure import Comparison, MeasureSettings
from edge_agent.pipeline import Tensors
from edge_agent.runtime import available
from edge_agent.wire.manifest import CostModel, Manifest
from optimizer.budget import Budget
from optimizer.detection import Traits, check
from optimizer.predictor import Prediction, Predictor, predicted_measurement, scale
from optimizer.profiles import THIS_MACHINE, HardwareProfile, load_profile
from optimizer.task import Fidelity
from optimizer.timing import LocalMeasurer, Measured, Measurer


class PredictingMeasurer:
    """See the module."""

    def __init__(
        self,
        predictor: Predictor,
        *,
        local: Measurer | None = None,
        here: HardwareProfile | None = None,
        traits: Traits | None = None,
    ) -> None:
        """
        Args:
            local: times bundles on this machine.
            here: this machine as a profile.
            traits: this machine as match rules see it.
        """
        self._predictor = predictor
        self._local = local or LocalMeasurer()
        self._here = here or load_profile(THIS_MACHINE)
        self._traits = traits or Traits.here()

    def notes(self, profile: HardwareProfile) -> tuple[str, ...]:
        if self._measurable(profile):
            return self._local.notes(profile)
        return (f"predicted: this machine is no {profile.name}; measure it on a device to be sure",)

    def where(self, profile: HardwareProfile) -> str:
        if self._measurable(profile):
            return self._local.where(profile)
        count = self._predictor.count(profile.name)
        return f"this machine, corrected by {count} device results"

    def measure(
        self,
        directory: Path,
        manifest: Manifest,
        samples: Sequence[Tensors],
        profile: HardwareProfile,
        budget: Budget,
        settings: MeasureSettings,
        fidelity: Fidelity = "full",
    ) -> Measured:
        if self._measurable(profile):
            return self._local.measure(
                directory, manifest, samples, profile, budget, settings, fidelity
            )
        if manifest.network.runtime not in available():
            return Measured(notes=(f"{manifest.network.runtime} is not here to time it with",))
        asked = budget.model_copy(update={"qps": None, "memory_mib": None, "replicas": None})
        found = self._local.measure(
            directory, manifest, samples, self._here, asked, settings, fidelity
        )
        if found.latency is None or found.latency.p50_ms <= 0:
            return Measured(notes=found.notes)
        precision = found.latency.provenance.get("precision", manifest.network.precision)
        scaled_ms = scale(found.latency.p50_ms, precision, self._here, profile)
        prediction = self._predictor.predict(
            profile.name, manifest.network.runtime, precision, scaled_ms
        )
        return Measured(
            predicted_measurement(found.latency, prediction),
            cost=_scaled(found.cost, prediction, found.latency.p50_ms),
            predicted=True,
            notes=(*found.notes, prediction.text),
        )

    def compare(
        self,
        baseline_dir: Path,
        candidate_dir: Path,
        samples: Sequence[Tensors],
        profile: HardwareProfile,
        settings: MeasureSettings,
    ) -> Comparison | None:
        if not self._measurable(profile):
            return None
        return self._local.compare(baseline_dir, candidate_dir, samples, profile, settings)

    def _measurable(self, profile: HardwareProfile) -> bool:
        if profile.name == self._here.name:
            return True
        return profile.match is not None and check(self._traits, profile, profile.match).fits


def _scaled(cost: CostModel | None, prediction: Prediction, local_ms: float) -> CostModel | None:
    if cost is None:
        return None
    factor = prediction.latency_ms / local_ms
    return cost.model_copy(
        update={
            "per_item_us": cost.per_item_us * factor,
            "fixed_us": cost.fixed_us * factor,
        }
    )
