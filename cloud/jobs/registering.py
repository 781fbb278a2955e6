"""What the registry keeps of a build: metrics, environment, gates."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any, Final

from pydantic import JsonValue

from cloud.gates import GateResult
from cloud.jobs.cache import Result
from edge_agent.runtime.cpu import cpu_flags

_PACKAGES: Final = ("torch", "numpy", "onnx", "onnxruntime", "openvino", "nncf", "skerry")


def environment() -> dict[str, JsonValue]:
    """Interpreter, packages and instruction sets that a version was made with."""
    packages: dict[str, JsonValue] = {}
    for name in _PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_flags": list(cpu_flags()),
        "packages": packages,
    }


def model_metrics(trained: Mapping[str, Result], optimized: Result) -> dict[str, JsonValue]:
    """`profiles`: the selected variant of each; `members`: each network as it was trained."""
    members: dict[str, JsonValue] = {
        name: {
            "metrics": answer["metrics"],
            "checkpoint_sha": answer["checkpoint_sha"],
            "parameters": answer["parameters"],
            "warm_start": answer["warm_start"],
        }
        for name, answer in trained.items()
    }
    profiles: dict[str, JsonValue] = {}
    candidates: Any = optimized["candidates"]
    for candidate in candidates:
        if candidate["selected"]:
            accuracy = {
                key: value for key, value in candidate["accuracy"].items() if key != "predictions"
            }
            profiles[candidate["profile"]] = {"variant": candidate["name"], **accuracy}
    return {"profiles": profiles, "members": members}


def gate_results(judged: Result) -> list[GateResult]:
    """The gates of a stored result."""
    gates: Any = judged["gates"]
    return [
        GateResult(gate["gate"], gate["verdict"], gate["reason"], gate["evidence"])
        for gate in gates
    ]
