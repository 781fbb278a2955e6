"""For tests: a released bundle with a drift reference, without a build; a check in one go."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from cloud.blobs import Blobs
from cloud.db.tables import Device, DriftReport, Release
from cloud.drift.check import judge, record
from cloud.drift.settings import DriftSettings
from edge_agent.drift import write_reference
from edge_agent.wire.manifest import MANIFEST_NAME, Manifest, ModelSpec, TensorSpec

REFERENCE_NAME = "reference.npz"


def check(
    session: Session,
    blobs: Blobs,
    model: str,
    version: int,
    now: float,
    settings: DriftSettings | None = None,
) -> list[DriftReport]:
    """Judge and record in one transaction."""
    judged = judge(session, blobs, model, version, now, settings or DriftSettings())
    return record(session, judged)


def store_device(session: Session, device: str, profile: str = "this-machine") -> Device:
    """An enrolled device."""
    row = Device(
        id=device,
        profile=profile,
        labels={},
        inventory={},
        certificate_serial="1",
        certificate_expires_at=0.0,
        enrolled_at=0.0,
        reported={},
        desired={},
    )
    session.add(row)
    session.flush()
    return row


def store_release(
    session: Session,
    blobs: Blobs,
    signals: NDArray[np.float64] | None,
    inputs: Sequence[TensorSpec],
    *,
    labels: Sequence[str] = (),
    model: str = "digits",
    version: int = 1,
    profile: str = "this-machine",
    counter: int = 1,
) -> Release:
    """A release whose bundle holds `signals` [n, 12] as its reference; `None`: it has none."""
    reference = b""
    if signals is not None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / REFERENCE_NAME
            write_reference(path, signals)
            reference = path.read_bytes()
    manifest = Manifest(
        model=model,
        version=version,
        profile=profile,
        variant="small/fp32",
        inputs=tuple(inputs),
        outputs=(),
        labels=tuple(labels),
        pipeline=(),
        network=ModelSpec(
            runtime="onnxruntime", file="model.onnx", inputs=tuple(inputs), outputs=()
        ),
        reference=REFERENCE_NAME if signals is not None else None,
        files=(),
    )
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as bundle:
        for name, content in ((MANIFEST_NAME, manifest.encode()), (REFERENCE_NAME, reference)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            bundle.addfile(member, io.BytesIO(content))
    row = Release(
        target=f"models/{model}/{profile}/{counter}.bundle",
        model=model,
        version=version,
        profile=profile,
        counter=counter,
        bundle_sha=blobs.put(data.getvalue()),
        length=len(data.getvalue()),
        info={},
        created_at=0.0,
    )
    session.add(row)
    session.flush()
    return row
