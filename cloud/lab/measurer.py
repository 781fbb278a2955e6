"""The optimizer's port `Measurer`, on lab devices of the fleet.

It talks to the control plane through the public API alone, so it works wherever a client does: in
the command line, and in the child process of a job.  What must last lies at the control plane: an
order survives a restart of either side, and whoever waits just asks again.

Rules:
    * All devices of the profile are asked at the same time; the device in the middle (the slower of
      two) gives the figures, and a note says how far the others are from it.
    * A device that gives no result is named in a note; without any result the measurement failed.
    * Orders that nobody waits for any more are taken back.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from pydantic import ValidationError

from cloud.lab.errors import CannotMeasure, LabFailed, LabUnreachable
from cloud.publish import build_bundle
from edge_agent.measure import Comparison, Measurement, MeasureSettings, percentiles
from edge_agent.measure.samples import pack_samples
from edge_agent.pipeline import Tensors
from edge_agent.wire.lab import MeasureResult
from edge_agent.wire.manifest import CostModel, Manifest
from fleet.client.errors import ApiError
from fleet.client.schemas import LabBlobOut, LabDeviceOut, LabOrderIn, LabOrderOut
from optimizer.budget import Budget
from optimizer.profiles import HardwareProfile
from optimizer.task import Fidelity
from optimizer.timing import Measured

log = logging.getLogger("skerry.lab")

DISAGREEMENT: Final = 1.15
"""Slowest over fastest device from which on a note says that they disagree."""
MAX_SAMPLES_BYTES: Final = 8 << 20
"""Raw bytes of samples that are sent; at least one is."""
_OVERS_ALLOWED_FOR: Final = 5
_MAX_SERVER_S: Final = 60.0
_GRACE_S: Final = 30.0
"""How long after an order has run out its end is waited for."""


class LabClient(Protocol):
    """The part of `fleet.client.client.Client` that a measurer needs."""

    def lab_devices(self, on: str) -> list[LabDeviceOut]: ...

    def lab_blob(self, sha256: str) -> LabBlobOut: ...

    def upload_lab_blob(self, kind: Any, data: bytes) -> LabBlobOut: ...

    def order_measurement(self, request: LabOrderIn) -> LabOrderOut: ...

    def lab_order(self, order_id: str) -> LabOrderOut: ...

    def cancel_lab_order(self, order_id: str) -> LabOrderOut: ...


@dataclass(frozen=True)
class DeviceResult:
    """A verified result of one order, as the control plane keeps it."""

    device: str
    order: str
    result: MeasureResult


class RemoteMeasurer:
    """See the module.  For one thread."""

    def __init__(
        self,
        client: LabClient,
        on: str,
        *,
        timeout_s: float = 900.0,
        poll_s: float = 0.5,
        learn: Callable[[Path, Manifest, Sequence[Tensors], HardwareProfile, str], None] | None = (
            None
        ),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Find the devices.

        Args:
            on: "device:ID" or "group:NAME".
            timeout_s: the longest that one measurement may take, downloads included.
            learn: told of every order that gave a latency, with the bundle it measured: what the
                predictor is corrected by.
            clock: monotonic seconds.

        Raises:
            ApiError: the selection is wrong, or the control plane does not answer.
            CannotMeasure: none of the devices can measure now; the line says why.
        """
        self._client = client
        self._timeout_s = timeout_s
        self._poll_s = poll_s
        self._learn = learn
        self._clock = clock
        self._sleep = sleep
        devices = client.lab_devices(on)
        self._devices = [device for device in devices if not device.problem]
        self._absent = tuple(device.problem for device in devices if device.problem)
        if not self._devices:
            raise CannotMeasure(f"{on}: " + "; ".join(self._absent))
        self._uploaded: set[str] = set()

    # ── the port ─────────────────────────────────────────────────────────────────────────────────

    def notes(self, profile: HardwareProfile) -> tuple[str, ...]:
        if not self._of(profile):
            have = ", ".join(sorted({device.profile for device in self._devices}))
            return (f"not measured: the lab devices are of {have}, none of {profile.name}",)
        return tuple(f"not asked: {problem}" for problem in self._absent)

    def where(self, profile: HardwareProfile) -> str:
        return ", ".join(device.id for device in self._of(profile))

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
        devices = self._of(profile)
        if not devices:
            return Measured()
        full = fidelity == "full"
        weighed = budget.memory_mib is not None or budget.replicas is not None
        qps = budget.qps if full else None
        ask = {
            "candidate": self._bundle(directory, manifest),
            "samples": self._upload("samples", pack_samples(_bounded(samples))),
            "latency_ms": budget.latency_ms,
            "percentile": budget.percentile,
            "qps": qps,
            "cost": full,
            "memory": full and weighed,
            "settings": settings.model_dump(mode="json"),
            "server_settings": (
                {} if qps is None else _long_enough(settings, qps, budget.percentile)
            ),
        }
        results, notes = self._ask(devices, ask)
        measured = _combined(results, notes)
        if self._learn is not None:
            for each in results:
                self._learn(directory, manifest, samples, profile, each.order)
        return measured

    def compare(
        self,
        baseline_dir: Path,
        candidate_dir: Path,
        samples: Sequence[Tensors],
        profile: HardwareProfile,
        settings: MeasureSettings,
    ) -> Comparison | None:
        devices = self._of(profile)
        if not devices:
            return None
        ask = {
            "candidate": self._bundle(candidate_dir),
            "compare_with": self._bundle(baseline_dir),
            "samples": self._upload("samples", pack_samples(_bounded(samples))),
            "settings": settings.model_dump(mode="json"),
        }
        results, _ = self._ask(devices, ask)
        found: list[Comparison] = sorted(
            (_parsed(Comparison, each.result.comparison, each.device) for each in results),
            key=lambda comparison: comparison.speedup,
        )
        return found[(len(found) - 1) // 2]  # of two, the one that gained less

    # ── orders ───────────────────────────────────────────────────────────────────────────────────

    def _of(self, profile: HardwareProfile) -> list[LabDeviceOut]:
        return [device for device in self._devices if device.profile == profile.name]

    def _ask(
        self, devices: Sequence[LabDeviceOut], ask: dict[str, Any]
    ) -> tuple[list[DeviceResult], list[str]]:
        """Order on every device, and wait for all.

        Returns:
            The results, and a line for each device that gave none.

        Raises:
            LabFailed: there are no results.
            LabUnreachable: the control plane did not answer in time.
        """
        waiting = {device.id: "" for device in devices}
        drawn: dict[str, str] = {}
        results: list[DeviceResult] = []
        problems: list[str] = []
        deadline = self._clock() + self._timeout_s + _GRACE_S
        try:
            while waiting:
                for device in list(waiting):
                    try:
                        ended = self._step(device, waiting, drawn, ask)
                    except ApiError as error:
                        if self._clock() >= deadline:
                            raise LabUnreachable(str(error)) from error
                        continue  # it restarts, maybe; the order goes on meanwhile
                    if ended is None:
                        continue
                    del waiting[device]
                    if isinstance(ended, DeviceResult):
                        results.append(ended)
                    else:
                        problems.append(ended)
                if waiting:
                    if self._clock() >= deadline:
                        problems += [f"{device}: no result in time" for device in waiting]
                        break
                    self._sleep(self._poll_s)
        finally:
            self._take_back([drawn[device] for device in waiting if device in drawn])
        if not results:
            raise LabFailed("; ".join(problems))
        return results, [f"no result of {problem}" for problem in problems]

    def _step(
        self, device: str, waiting: dict[str, str], drawn: dict[str, str], ask: dict[str, Any]
    ) -> DeviceResult | str | None:
        """A result, why there is none, or None while it is waited for.

        Raises:
            ApiError: the control plane does not answer.
        """
        if not waiting[device]:
            order_id = drawn.setdefault(device, secrets.token_hex(16))
            request = LabOrderIn(id=order_id, device=device, timeout_s=self._timeout_s, **ask)
            try:
                waiting[device] = self._client.order_measurement(request).id
            except ApiError as error:
                if "is measuring already" in str(error):
                    return None  # for somebody else; its turn comes
                if 400 <= error.status < 500:
                    return f"{device}: {error}"
                raise
            return None
        order = self._client.lab_order(waiting[device])
        if not order.ended:
            return None
        if order.state != "done":
            return f"{device}: {order.state}: {order.detail}"
        return DeviceResult(device, order.id, _parsed(MeasureResult, order.result, device))

    def _take_back(self, orders: Sequence[str]) -> None:
        for order in orders:
            try:
                self._client.cancel_lab_order(order)
            except ApiError as error:
                log.warning("lab.not_taken_back order=%s cause=%s", order, error)

    # ── blobs ────────────────────────────────────────────────────────────────────────────────────

    def _bundle(self, directory: Path, manifest: Manifest | None = None) -> str:
        return self._upload("bundle", build_bundle(directory, manifest))

    def _upload(self, kind: str, data: bytes) -> str:
        """Digest of a blob that the control plane has now.

        Raises:
            LabUnreachable: it could not be stored.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 in self._uploaded:
            return sha256
        try:
            try:
                self._client.lab_blob(sha256)
            except ApiError as error:
                if error.status != 404:
                    raise
                self._client.upload_lab_blob(kind, data)
        except ApiError as error:
            raise LabUnreachable(f"the {kind} cannot be stored: {error}") from error
        self._uploaded.add(sha256)
        return sha256


def _combined(results: Sequence[DeviceResult], notes: Sequence[str]) -> Measured:
    """The middle device's figures; of two, the slower one's."""
    latencies = sorted(
        ((_parsed(Measurement, each.result.latency, each.device), each) for each in results),
        key=lambda pair: pair[0].p50_ms,
    )
    latency, middle = latencies[len(latencies) // 2]
    said = list(notes)
    fastest, slowest = latencies[0][0].p50_ms, latencies[-1][0].p50_ms
    if len(latencies) > 1:
        listed = ", ".join(f"{each.device} {found.p50_ms:.3g} ms" for found, each in latencies)
        apart = fastest > 0 and slowest / fastest > DISAGREEMENT
        said.append(f"{'devices disagree' if apart else 'median latency by device'}: {listed}")
    for _, each in latencies:
        if each.result.served_requests:
            said.append(f"{each.device} served {each.result.served_requests} predictions meanwhile")
        if each.result.detail:
            said.append(f"{each.device}: {each.result.detail}")
    server, cost = middle.result.server, None
    if middle.result.cost is not None:
        cost = _parsed(CostModel, middle.result.cost.get("cost"), middle.device)
        if note := str(middle.result.cost.get("note") or ""):
            said.append(note)
    memory = [each.result.memory_mib for each in results if each.result.memory_mib is not None]
    return Measured(
        latency,
        None if server is None else _parsed(Measurement, server, middle.device),
        cost,
        max(memory, default=None),
        notes=tuple(said),
    )


def _parsed(kind: type[Any], content: object, device: str) -> Any:
    """
    Raises:
        LabFailed: the device found something else than was asked for.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise LabFailed(f"{device}: its result has no sound {kind.__name__}") from error


def _bounded(samples: Sequence[Tensors]) -> list[Tensors]:
    """The first samples, as many as may be sent."""
    kept: list[Tensors] = []
    size = 0
    for sample in samples:
        size += sum(array.nbytes for array in sample.values())
        if kept and size > MAX_SAMPLES_BYTES:
            break
        kept.append(sample)
    return kept


def _long_enough(settings: MeasureSettings, qps: float, percentile: float) -> dict[str, Any]:
    """Arrivals are paced, so a percentile takes as long as its queries take to arrive."""
    needed = percentiles.queries_needed(_OVERS_ALLOWED_FOR, percentile)
    duration_s = min(_MAX_SERVER_S, 1.1 * needed / qps)
    longer = max(settings.max_duration_s, duration_s)
    return settings.model_copy(update={"max_duration_s": longer}).model_dump(mode="json")
