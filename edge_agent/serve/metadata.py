"""What the protocol tells about the server and its models, as plain values for any transport.

Source: github.com/kserve/open-inference-protocol (metadata); the extensions for configuration,
statistics and the repository: github.com/triton-inference-server/server/tree/main/docs/protocol
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from functools import cache
from typing import Final

from pydantic import JsonValue

from edge_agent.serve.dataplane import DataPlane
from edge_agent.serve.errors import NotOffered
from edge_agent.serve.metrics import Snapshot
from edge_agent.serve.served_model import ServedModel
from edge_agent.wire.manifest import TensorSpec

EXTENSIONS: Final = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")


@cache
def agent_version() -> str:
    """Version of the installed agent."""
    try:
        return importlib.metadata.version("skerry-agent")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def server() -> dict[str, JsonValue]:
    """Metadata of the server."""
    return {
        "name": "skerry-agent",
        "version": agent_version(),
        "extensions": list(EXTENSIONS),
    }


def describe(model: ServedModel) -> dict[str, JsonValue]:
    """Metadata of a model."""
    manifest = model.manifest
    return {
        "name": manifest.model,
        "versions": [str(manifest.version)],
        "platform": f"skerry_{manifest.network.runtime}",
        "inputs": [_tensor(spec) for spec in manifest.inputs],
        "outputs": [_tensor(spec) for spec in manifest.outputs],
    }


def config(model: ServedModel) -> dict[str, JsonValue]:
    """Configuration of a model; `max_batch_size` 0 says that the shapes hold the batch axis."""
    manifest = model.manifest

    def tensors(specs: Sequence[TensorSpec]) -> list[JsonValue]:
        return [
            {
                "name": spec.name,
                "data_type": "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}",
                "dims": list(spec.shape),
            }
            for spec in specs
        ]

    return {
        "name": manifest.model,
        "platform": f"skerry_{manifest.network.runtime}",
        "backend": "skerry",
        "version_policy": {"specific": {"versions": [manifest.version]}},
        "max_batch_size": 0,
        "input": tensors(manifest.inputs),
        "output": tensors(manifest.outputs),
        "instance_group": [{"count": manifest.network.instances, "kind": "KIND_CPU"}],
    }


def statistics(plane: DataPlane, name: str | None = None) -> dict[str, JsonValue]:
    """Counts and times of one model, or of all.

    Raises:
        ModelNotServed: no such model.
    """
    if name is not None:
        plane.model(name)
    return {
        "model_stats": [
            _statistics(model, version, snapshot)
            for model, version, snapshot in plane.snapshots()
            if name in (None, model)
        ]
    }


def index(plane: DataPlane) -> list[dict[str, str]]:
    """The repository: what is served."""
    return [
        {"name": name, "version": str(model.version), "state": "READY", "reason": ""}
        for name, model in sorted(plane.models.items())
    ]


def refuse_control(name: str) -> NotOffered:
    """Why no client can load or unload a model."""
    return NotOffered(
        f"model {name!r}: what is served here is decided by signed updates, not by clients"
    )


def _tensor(spec: TensorSpec) -> dict[str, JsonValue]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _statistics(name: str, version: int, snapshot: Snapshot) -> JsonValue:
    """Times are of whole requests: acceptance to answer.  A `batch_size` stands for those above the
    power of two before it."""
    succeeded, total_ns = snapshot.predictions, int(snapshot.sum_us * 1000)
    failed = snapshot.errors + snapshot.rejects + sum(snapshot.shed.values())
    return {
        "name": name,
        "version": str(version),
        "inference_count": snapshot.items,
        "execution_count": sum(snapshot.batches.values()),
        "inference_stats": {
            "success": {"count": succeeded, "ns": total_ns},
            "fail": {"count": failed, "ns": 0},
        },
        "batch_stats": [
            {"batch_size": size, "compute_infer": {"count": count, "ns": 0}}
            for size, count in sorted(snapshot.batches.items())
        ],
    }
