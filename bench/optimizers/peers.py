"""Other optimisers of the same network, each in an environment of its own.

A peer gets the exported network and the calibration rows and writes what it made of them.  What it
made is judged on the same rows, and the fastest that keeps the same bound of accuracy is compared
with our choice in turns; the network as it was exported counts as the peer's too, for that is what
its user would be left with.

olive    Olive's `optimize` for CPUs: its passes for ONNX networks, in fp32 and int8
nncf     NNCF's post-training quantisation with its defaults, run by OpenVINO with its defaults
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime

from bench.loads.environments import HERE, cache_directory, environment
from bench.loads.errors import PeerUnavailable, ServerFailed
from bench.optimizers.subjects import INPUT, Data
from edge_agent.measure import Comparison, Issue
from edge_agent.runtime.telemetry import forbid_telemetry

PEERS: Final = ("olive", "nncf")
_LIMIT_S: Final = 1800.0


@dataclass(frozen=True)
class PeerFigures:
    """How our choice compares with a peer's.

    Attributes:
        made: accuracy by what the peer made, 0..1.
        chosen: the fastest of them that keeps the bound.
        ours_over_theirs: speed of our choice over `chosen`.
        failed: why there is no figure; else empty.
    """

    name: str
    made: dict[str, float]
    chosen: str = ""
    ours_over_theirs: Comparison | None = None
    failed: str = ""


def interpreters(tell: Callable[[str], None]) -> dict[str, Path]:
    """Interpreters by peer; one that cannot be installed is told and left out."""
    found = {}
    for name in PEERS:
        try:
            found[name] = environment(name, cache_directory())
        except PeerUnavailable as error:
            tell(f"{name} is left out: {error}")
    return found


def compare_with(
    name: str,
    python: Path,
    onnx_path: Path,
    data: Data,
    directory: Path,
    *,
    reference: float,
    max_drop_points: float,
    turns: Callable[[Issue], Comparison],
    samples: list[dict[str, np.ndarray]],
) -> PeerFigures:
    """Have a peer optimise the network, and compare.

    Args:
        reference: accuracy that losses are counted from, 0..1.
        turns: times a peer's network and our choice in turns.
    """
    out = directory / name
    out.mkdir()
    rows = directory / "calibration.npz"
    if not rows.exists():
        np.savez(rows, **{INPUT: data.calibration})
    try:
        files = optimised(name, python, onnx_path, rows, out)
    except ServerFailed as error:
        return PeerFigures(name, {}, failed=str(error))
    made: dict[str, float] = {}
    best: tuple[str, Comparison] | None = None
    for label, path in files.items():
        run = opened(path)
        made[label] = _accuracy(run, data)
        if (reference - made[label]) * 100 > max_drop_points:
            continue
        compared = turns(_issue(run, samples))
        if best is None or compared.speedup < best[1].speedup:
            best = (label, compared)
    if best is None:
        return PeerFigures(name, made, failed="nothing that it made keeps the bound")
    return PeerFigures(name, made, *best)


def optimised(name: str, python: Path, onnx_path: Path, rows: Path, out: Path) -> dict[str, Path]:
    """What a peer made of the network: files by what it calls them.

    Raises:
        ServerFailed: it made nothing; its last line says why.
    """
    command = [str(python), str(HERE / f"optimize_{name}.py"), str(onnx_path), str(rows), str(out)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_LIMIT_S, cwd=out,
            env={"PATH": f"{python.parent}:/usr/bin:/bin", "HOME": str(out)},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ServerFailed(f"{name} took more than {_LIMIT_S:.0f} s") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ServerFailed(f"{name}: {said[:300]}")
    files: dict[str, str] = json.loads(lines[-1])
    return {label: Path(path) for label, path in files.items()}


Run = Callable[[np.ndarray], np.ndarray]
"""From a batch of inputs to its logits."""


def opened(path: Path) -> Run:
    """A network by its own runtime with that runtime's defaults."""
    if path.suffix == ".xml":
        forbid_telemetry()
        import openvino

        compiled = openvino.Core().compile_model(str(path), "CPU", {"PERFORMANCE_HINT": "LATENCY"})
        request = compiled.create_infer_request()

        def by_openvino(batch: np.ndarray) -> np.ndarray:
            answer: np.ndarray = request.infer([batch])[0]
            return answer

        return by_openvino
    session = ort_session(path)

    def by_onnxruntime(batch: np.ndarray) -> np.ndarray:
        answer: np.ndarray = session.run(None, {INPUT: batch})[0]
        return answer

    return by_onnxruntime


def ort_session(path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """ONNX Runtime with its defaults, but for spinning: see the package.

    Args:
        threads: of one call; 0 takes every core, as its default does.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )


def _issue(run: Run, samples: list[dict[str, np.ndarray]]) -> Issue:
    def issue(index: int) -> None:
        run(samples[index][INPUT])

    return issue


def _accuracy(run: Run, data: Data) -> float:
    labels = [
        run(data.judged[index : index + 1]).argmax(axis=1)[0] for index in range(len(data.labels))
    ]
    return float(np.mean(np.array(labels) == data.labels))
