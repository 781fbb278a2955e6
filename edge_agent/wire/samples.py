"""Samples: inputs of the field with what was answered, and why they were kept.

On the wire a sample is an uplink frame whose payload is again a frame: a `SampleHeader`, then the
tensors' little-endian bytes in header order, compressed as one zstd frame.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from edge_agent.wire.base import WireModel
from edge_agent.wire.ids import Digest, Slug
from edge_agent.wire.manifest import TensorSpec

Policy = Literal["uniform", "uncertain", "event"]
"""Stratum of a sample.  Drift and evaluation read "uniform" only: the others are biased."""

MAX_SAMPLE_BYTES: Final = 96 * 1024
"""Bound of one encoded sample; larger ones are not kept."""


class SampleHeader(WireModel):
    """See the module.

    Attributes:
        inclusion_prob: probability with which this request was kept by `policy`, in (0, 1].
        tensors: the pipeline's inputs of one request, each with its leading batch axis.
        scores: the network's class scores, where it has classes.
        label: a person's correction, when it was known already.
        privacy: digest over the applied hooks, in order, with their configs; empty if none.
    """

    sample_id: str = Field(max_length=64)
    prediction_id: str = Field(max_length=64)
    model: Slug
    version: int
    policy: Policy
    inclusion_prob: float = Field(gt=0, le=1)
    taken_at: float
    tensors: tuple[TensorSpec, ...]
    predicted: str = ""
    scores: tuple[float, ...] = ()
    label: str | None = None
    privacy: Digest | Literal[""] = ""
