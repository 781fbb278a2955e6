"""From a model's name to the report: which version, which bundle, which inputs, then the check."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from pydantic import BaseModel, ConfigDict

from cloud.parity.check import DEFAULT_BATCHES, check
from cloud.parity.compare import Comparison, Tolerance, Verdict
from cloud.parity.device import Device
from cloud.parity.errors import InputsDoNotFit, OtherVersion
from cloud.parity.inputs import golden_inputs, joined, read_inputs, unpack_rows
from cloud.parity.release import Opened, find_release, newest_version, opened
from edge_agent.pipeline import Tensors
from fleet.client.schemas import ModelDetail, ModelOut

log = logging.getLogger("skerry.parity")

DEFAULT_LIMIT: Final = 256
_DATASET: Final = re.compile(r"[0-9a-f]{8,64}")


class Registry(Protocol):
    """What is asked of the control plane; `fleet.client.Client` is one."""

    def every_model(self) -> list[ModelOut]: ...

    def model(self, name: str, version: int) -> ModelDetail: ...

    def bundle(self, variant_id: int) -> bytes: ...

    def held_out_inputs(self, dataset: str, *, limit: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be compared.

    Attributes:
        version: None takes the one that the device serves, else the champion.
        profile: empty takes the device's, else the only one that was released for.
        inputs: `.npz` files and ids of dataset versions, beside the golden inputs.
        limit: most items.
        atol: None takes the tolerance of the manifest's known answers.
    """

    model: str
    version: int | None = None
    profile: str = ""
    inputs: tuple[str, ...] = ()
    batches: tuple[int, ...] = DEFAULT_BATCHES
    limit: int = DEFAULT_LIMIT
    atol: float | None = None
    rtol: float = 0.0


class Report(BaseModel):
    """The answer.

    Attributes:
        bundle: SHA-256 of the released bundle.
        device: address of the device; empty without one.
        shows_steps: whether the device showed its steps; None without a device.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    version: int
    profile: str
    variant: str
    bundle: str
    device: str
    shows_steps: bool | None
    verdict: Verdict
    items: int
    atol: float
    rtol: float
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]


def examine(question: Question, registry: Registry, device: Device | None = None) -> Report:
    """Compare what was asked for.

    Raises:
        ParityError: it cannot be compared; one line says why.
        ApiError: the control plane refuses, or cannot be asked.
    """
    served = None if device is None else device.version(question.model)
    version = question.version or served or newest_version(registry.every_model(), question.model)
    if device is not None and served != version:
        raise OtherVersion(
            f"the device at {device.address} serves {question.model}:{served}, asked for is "
            f"{question.model}:{version}; versions are not compared with each other"
        )
    profile, variant_name = ("", "") if device is None else device.installed(question.model)
    if question.profile and profile and question.profile != profile:
        raise OtherVersion(
            f"the device is of profile {profile!r}, asked for is {question.profile!r}"
        )
    detail = registry.model(question.model, version)
    profile, variant = find_release(detail, question.profile or profile, variant_name)
    with opened(variant, registry.bundle) as bundle:
        manifest = bundle.manifest
        tolerance = Tolerance(
            manifest.golden_atol if question.atol is None else question.atol, question.rtol
        )
        checked = check(
            manifest,
            bundle.pipeline,
            _inputs(question, bundle, registry),
            tolerance=tolerance,
            batches=question.batches,
            device=device,
        )
        report = Report(
            model=manifest.model,
            version=manifest.version,
            profile=profile,
            variant=manifest.variant,
            bundle=bundle.bundle_sha,
            device="" if device is None else str(device.address),
            shows_steps=checked.shows_steps,
            verdict=checked.verdict,
            items=checked.items,
            atol=tolerance.atol,
            rtol=tolerance.rtol,
            comparisons=checked.comparisons,
            notes=checked.notes,
        )
    log.debug(
        "parity.checked model=%s version=%d profile=%s verdict=%s",
        report.model, report.version, report.profile, report.verdict,
    )  # fmt: skip
    return report


def _inputs(question: Question, bundle: Opened, registry: Registry) -> Tensors:
    parts = []
    if known := golden_inputs(bundle.directory, bundle.manifest):
        parts.append(("the golden inputs", known))
    for name in question.inputs:
        if Path(name).is_file():
            parts.append((name, read_inputs(Path(name))))
        elif _DATASET.fullmatch(name):
            dataset = _whole_id(name, registry)
            data = registry.held_out_inputs(dataset, limit=question.limit)
            parts.append((f"dataset {name}", unpack_rows(data, f"dataset {name}")))
        else:
            raise InputsDoNotFit(f"{name!r} is neither a file nor the id of a dataset version")
    return joined(parts, bundle.manifest, question.limit)


def _whole_id(prefix: str, registry: Registry) -> str:
    """The id that begins like this among those that versions were made of; else as it is."""
    found = {row.dataset for row in registry.every_model() if row.dataset.startswith(prefix)}
    if len(found) > 1:
        raise InputsDoNotFit(f"{len(found)} dataset versions begin with {prefix}; give more of it")
    return found.pop() if found else prefix
