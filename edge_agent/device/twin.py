"""The reported twin: what this device says of itself.

Built from what is installed and the newest report of each model; published by the composition root.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edge_agent.wire.messages import (
    FINAL_PHASES,
    ChallengerState,
    DeviceState,
    Inventory,
    ModelState,
    Phase,
    UpdateReport,
)


@dataclass(frozen=True, slots=True)
class Served:
    """One installed version, as the slot store knows it.

    Attributes:
        fault: why it does not serve although it is installed; empty when it does.
        challenger: what is tried beside it.
    """

    model: str
    version: int
    counter: int
    sha256: str
    variant: str
    pending: bool
    fault: str = ""
    challenger: ChallengerState | None = None


class Twin:
    """See the module.  Thread-safe."""

    def __init__(
        self,
        *,
        agent_version: str,
        profile: str,
        inventory: Inventory,
        clock: Callable[[], float],
        boot: str | None = None,
        lab: bool = False,
    ) -> None:
        """
        Args:
            clock: seconds since the epoch.
            lab: whether this device measures candidates.
            boot: drawn when left out.
        """
        self.boot = boot or uuid.uuid4().hex
        self._agent_version = agent_version
        self._profile = profile
        self._inventory = inventory
        self._clock = clock
        self._lab = lab
        self._lock = threading.Lock()
        self._desired_version = 0
        self._reports: dict[str, UpdateReport] = {}

    @property
    def desired_version(self) -> int:
        """The newest desired twin that was seen."""
        return self._desired_version

    def saw_desired(self, version: int) -> None:
        with self._lock:
            self._desired_version = version

    def found(self, inventory: Inventory) -> None:
        """What the device is made of, looked up anew."""
        with self._lock:
            self._inventory = inventory

    def reported(self, report: UpdateReport) -> None:
        """Remember the newest report of a model."""
        with self._lock:
            self._reports[report.model] = report

    def online(self, served: Iterable[Served]) -> DeviceState:
        """The birth: everything that is known now."""
        with self._lock:
            models = {each.model: self._model_state(each) for each in served}
            return DeviceState(
                boot=self.boot,
                online=True,
                agent_version=self._agent_version,
                profile=self._profile,
                inventory=self._inventory,
                models=models,
                desired_version=self._desired_version,
                at=self._clock(),
                lab=self._lab,
            )

    def offline(self) -> DeviceState:
        """The will, and the last word of an orderly stop."""
        return DeviceState(boot=self.boot, online=False, at=self._clock())

    def _model_state(self, served: Served) -> ModelState:
        phase: Phase = "probation" if served.pending else "healthy"
        detail = ""
        if served.fault:
            phase, detail = "failed", f"version {served.version} does not serve: {served.fault}"
        report = self._reports.get(served.model)
        tried = 0 if served.challenger is None else served.challenger.counter
        if report is not None and report.counter not in (served.counter, tried):
            # the version beside the one that serves: on its way, or turned away
            beside = f"version {report.version} {report.phase} {report.reason}".rstrip()
            detail = "; ".join(filter(None, (detail, beside)))
            if report.phase not in FINAL_PHASES:
                phase = report.phase
        return ModelState(
            version=served.version,
            counter=served.counter,
            sha256=served.sha256,
            variant=served.variant,
            phase=phase,
            detail=detail,
            challenger=served.challenger,
        )
