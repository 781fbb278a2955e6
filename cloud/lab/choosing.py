"""Which measurer a search is given: lab devices, this machine, and predictions for the rest.

A profile that the chosen devices are of is measured on them; any other one on this machine where it
fits the profile's match rule, and else predicted.  Every device result corrects the predictor.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from cloud.lab.measurer import LabClient, RemoteMeasurer
from edge_agent.measure import Comparison, MeasureError, MeasureSettings
from edge_agent.pipeline import PipelineError, Tensors
from edge_agent.runtime import SessionError, available
from edge_agent.wire.manifest import Manifest
from fleet.client.errors import ApiError
from fleet.client.schemas import PredictorPointIn, PredictorPointOut
from optimizer.budget import Budget
from optimizer.predicting import PredictingMeasurer
from optimizer.predictor import Point, Predictor, scale
from optimizer.profiles import THIS_MACHINE, HardwareProfile, load_profile
from optimizer.task import Fidelity
from optimizer.timing import LocalMeasurer, Measured, Measurer

log = logging.getLogger("skerry.lab")


class PointsClient(LabClient, Protocol):
    """The part of `fleet.client.client.Client` that is needed here."""

    def predictor_points(self, profile: str = "") -> list[PredictorPointOut]: ...

    def add_predictor_point(self, request: PredictorPointIn) -> PredictorPointOut: ...


def measurer_on(client: PointsClient, on: str, *, timeout_s: float = 900.0) -> Measurer:
    """What `--on` asks for.

    Args:
        on: "device:ID" or "group:NAME".
        timeout_s: the longest that one measurement on a device may take.

    Raises:
        ApiError: the selection is wrong, or the control plane does not answer.
        CannotMeasure: none of the devices can measure now.
    """
    remote = RemoteMeasurer(client, on, timeout_s=timeout_s, learn=Learner(client))
    points = client.predictor_points()
    return LabFirst(remote, PredictingMeasurer(predictor_of(points)))


def predictor_of(points: Iterable[PredictorPointOut]) -> Predictor:
    """The predictor that these results correct."""
    return Predictor(
        [
            Point(each.profile, each.runtime, each.precision, each.scaled_ms, each.measured_ms)
            for each in points
        ]
    )


class LabFirst:
    """Measures on devices where there are some of the profile, and else with another measurer."""

    def __init__(self, lab: Measurer, other: Measurer) -> None:
        self._lab = lab
        self._other = other

    def notes(self, profile: HardwareProfile) -> tuple[str, ...]:
        return self._for(profile).notes(profile)

    def where(self, profile: HardwareProfile) -> str:
        return self._for(profile).where(profile)

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
        return self._for(profile).measure(
            directory, manifest, samples, profile, budget, settings, fidelity
        )

    def compare(
        self,
        baseline_dir: Path,
        candidate_dir: Path,
        samples: Sequence[Tensors],
        profile: HardwareProfile,
        settings: MeasureSettings,
    ) -> Comparison | None:
        return self._for(profile).compare(baseline_dir, candidate_dir, samples, profile, settings)

    def _for(self, profile: HardwareProfile) -> Measurer:
        return self._lab if self._lab.where(profile) else self._other


class Learner:
    """Times here what a device has measured, so that both together correct the predictor.

    What cannot be timed here teaches nothing; the measurement stands all the same.
    """

    def __init__(
        self,
        client: PointsClient,
        *,
        local: Measurer | None = None,
        here: HardwareProfile | None = None,
    ) -> None:
        """
        Args:
            here: this machine as a profile.
        """
        self._client = client
        self._local = local or LocalMeasurer()
        self._here = here or load_profile(THIS_MACHINE)

    def __call__(
        self,
        directory: Path,
        manifest: Manifest,
        samples: Sequence[Tensors],
        profile: HardwareProfile,
        order: str,
    ) -> None:
        """Add the point of one order."""
        if manifest.network.runtime not in available():
            return
        settings = MeasureSettings.quick_mode()
        try:
            found = self._local.measure(
                directory, manifest, samples, self._here, Budget(), settings, "probe"
            ).latency
        except (MeasureError, PipelineError, SessionError) as error:
            log.info("lab.not_learned order=%s cause=%s", order, error)
            return
        if found is None or found.verdict == "INVALID" or found.p50_ms <= 0:
            return
        precision = found.provenance.get("precision", manifest.network.precision)
        request = PredictorPointIn(
            order=order,
            runtime=manifest.network.runtime,
            precision=precision,
            variant=manifest.variant,
            scaled_ms=scale(found.p50_ms, precision, self._here, profile),
        )
        try:
            self._client.add_predictor_point(request)
        except ApiError as error:
            log.warning("lab.not_learned order=%s cause=%s", order, error)
