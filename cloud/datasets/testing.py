"""For tests: samples of the field, stored as ingest stores them, without a broker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from cloud.blobs import Blobs
from cloud.datasets.tensors import canonical, datatype_of
from cloud.db.tables import Sample
from edge_agent.wire.samples import Policy, SampleHeader


def store_sample(
    session: Session,
    blobs: Blobs,
    prediction_id: str,
    tensors: Mapping[str, NDArray[Any]],
    *,
    model: str = "digits",
    version: int = 1,
    device: str = "dev-1",
    policy: Policy = "uniform",
    inclusion_prob: float = 0.5,
    taken_at: float = 1000.0,
    predicted: str = "",
    scores: NDArray[np.floating[Any]] | None = None,
) -> Sample:
    """Store one sample; `tensors` each with a leading batch axis, `scores` [classes]."""
    arrays = {name: canonical(array) for name, array in tensors.items()}
    header = SampleHeader.model_validate(
        {
            "sample_id": f"{device}-{policy}-{prediction_id}",
            "prediction_id": prediction_id,
            "model": model,
            "version": version,
            "policy": policy,
            "inclusion_prob": inclusion_prob,
            "taken_at": taken_at,
            "tensors": [
                {"name": name, "datatype": datatype_of(array.dtype), "shape": array.shape}
                for name, array in arrays.items()
            ],
            "predicted": predicted,
            "scores": [] if scores is None else [float(score) for score in scores],
        }
    )
    data = b"".join(array.tobytes() for array in arrays.values())
    row = Sample(
        id=header.sample_id,
        prediction_id=prediction_id,
        device=device,
        model=model,
        version=version,
        policy=policy,
        inclusion_prob=inclusion_prob,
        taken_at=taken_at,
        received_at=taken_at,
        predicted=predicted,
        header=header.model_dump(mode="json"),
        blob=blobs.put(zstandard.compress(data)),
    )
    session.add(row)
    session.flush()
    return row
