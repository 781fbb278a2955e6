"""Building a TensorRT engine on the device that runs it, and keeping it for the next start.

An engine fits one GPU model and one TensorRT version, and takes minutes to build: it is made where
it runs and kept in a cache directory, never beside the model, whose directory holds exactly the
bundle's files.  An entry's name is a digest of everything that the engine depends on; a damaged
entry is built again.  The timings of kernels are kept too, for all models together.

The cache is used only where nobody else can write to it, since an engine is code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from edge_agent.disk import write_whole
from edge_agent.runtime.errors import ModelNotLoadable
from edge_agent.runtime.onnx_file import has_integer_arithmetic, network_digest
from edge_agent.runtime.trt_api import Cuda, new_logger
from edge_agent.wire.manifest import ModelSpec

log = logging.getLogger(__name__)

MAX_ENGINES: Final = 6
"""Engines kept; the least recently used go first.  A device serves few models in two versions."""

_FORMAT: Final = 1
_USUAL_BATCH: Final = 8
"""Kernels are chosen for this many items, or for the largest batch where that is smaller."""

_FLOATS: Final = {"HALF": "fp16", "BF16": "bf16"}
_FLAGS: Final = {"fp16": "FP16", "bf16": "BF16"}


@dataclass(frozen=True, slots=True)
class Plan:
    """A serialised engine, and the precision it computes in."""

    data: bytes
    precision: str


def cache_directory(environment: Mapping[str, str]) -> Path:
    """Where engines are kept unless somebody says otherwise: the service's cache, or the user's."""
    for name in ("CACHE_DIRECTORY", "XDG_CACHE_HOME"):  # systemd's CacheDirectory= sets the first
        first = environment.get(name, "").split(":")[0]
        if first:
            return Path(first) / "skerry" / "tensorrt"
    return Path(environment.get("HOME") or "/nonexistent") / ".cache" / "skerry" / "tensorrt"


def obtain_plan(
    tensorrt: ModuleType, cuda: Cuda, path: Path, spec: ModelSpec, max_batch: int, directory: Path
) -> Plan:
    """The engine of `path` from the cache, or built now and kept.

    Raises:
        ModelNotLoadable: the file is no network that TensorRT can build as `spec` says.
    """
    usable = _private(directory)
    entry = directory / f"{_key(tensorrt, cuda, path, spec, max_batch)}.engine"
    if usable and (plan := _read(entry)) is not None:
        return plan
    hardware = f"{tensorrt.__version__} {cuda.device} {cuda.capability}"
    timings = directory / f"{hashlib.sha256(hardware.encode()).hexdigest()[:16]}.timings"
    started_s = time.monotonic()
    build = _Build(tensorrt, path, spec, max_batch)
    plan, kernel_timings = build.run(_read_bytes(timings) if usable else b"")
    log.info(
        "tensorrt.built model=%s precision=%s seconds=%.1f",
        path.name,
        plan.precision,
        time.monotonic() - started_s,
    )
    if usable:
        _write(entry, plan)
        _keep(timings, kernel_timings)
        _prune(directory, MAX_ENGINES)
    return plan


class _Build:
    """One build: parse, choose precision and profile, compile."""

    def __init__(self, tensorrt: ModuleType, path: Path, spec: ModelSpec, max_batch: int) -> None:
        self._trt = tensorrt
        self._path = path
        self._spec = spec
        self._max_batch = max_batch
        self._wanted = set(spec.precision.split("+"))

    def run(self, kernel_timings: bytes) -> tuple[Plan, bytes]:
        """The engine, and the timings that were measured on the way.

        Raises:
            ModelNotLoadable: see `obtain_plan`.
        """
        log_ = new_logger(self._trt)
        builder = self._trt.Builder(log_)
        network = builder.create_network(0)
        parser = self._trt.OnnxParser(network, log_)
        if not parser.parse_from_file(str(self._path)):
            reasons = [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]
            raise self._refused((reasons or [log_.last_error or "it is no ONNX network"])[0])
        config = builder.create_builder_config()
        precision = self._set_precision(config, network)
        self._add_profile(builder, config, network)
        cache = self._attach_timings(config, kernel_timings)
        data = builder.build_serialized_network(network, config)
        if data is None:
            raise self._refused(log_.last_error or "TensorRT built no engine and gave no reason")
        kept = config.get_timing_cache() if cache is not None else None
        timings = b"" if kept is None else bytes(kept.serialize())
        return Plan(bytes(data), precision), timings

    def _set_precision(self, config: Any, network: Any) -> str:
        """Allow what the spec names or the file's own types need, nothing lower.

        Raises:
            ModelNotLoadable: the engine would compute in another precision than the spec's.
        """
        flags = self._trt.BuilderFlag
        present = {_FLOATS[kind] for kind in _types(network) if kind in _FLOATS}
        chosen = present
        if hasattr(flags, "FP16"):  # until version 10 flags permit what the file does not say
            chosen = present | (self._wanted & _FLAGS.keys())
            for name in chosen:
                config.set_flag(getattr(flags, _FLAGS[name]))
        floats = next((name for name in ("fp16", "bf16") if name in chosen), "fp32")
        for name in self._wanted & _FLAGS.keys():
            if name not in chosen:
                raise self._refused(
                    f"the manifest says {name}, its types say {floats}, and TensorRT "
                    f"{self._trt.__version__} computes in the file's own types"
                )
        if floats == "fp32" and "tf32" in self._wanted:
            floats = "tf32"
        else:
            config.clear_flag(flags.TF32)  # on by default: fp32 with ten bits of mantissa
        if not has_integer_arithmetic(self._path):
            if "int8" in self._wanted:
                raise self._refused("the manifest says int8, but it has no quantised operators")
            return floats
        if hasattr(flags, "INT8"):
            config.set_flag(flags.INT8)
        return "int8" if floats == "fp32" else f"int8+{floats}"

    def _add_profile(self, builder: Any, config: Any, network: Any) -> None:
        """Let the batch axis run from one item to the largest batch.

        Raises:
            ModelNotLoadable: another axis is open, for which nobody names bounds.
        """
        shapes = {spec.name: spec.shape for spec in self._spec.inputs}
        profile = builder.create_optimization_profile()
        open_inputs = 0
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            actual = tuple(tensor.shape)
            if -1 not in actual:
                continue
            declared = shapes.get(tensor.name, actual)
            if len(declared) != len(actual):
                raise self._refused(
                    f"input {tensor.name!r} has {len(actual)} axes, the manifest says "
                    f"{len(declared)}"
                )
            rest = [said if got == -1 else got for said, got in zip(declared, actual, strict=True)]
            if -1 in rest[1:]:
                raise self._refused(
                    f"input {tensor.name!r} has an open axis besides the batch, and TensorRT "
                    "needs its length"
                )
            usual = min(_USUAL_BATCH, self._max_batch)
            low, middle, high = (
                (items if actual[0] == -1 else actual[0], *rest[1:])
                for items in (1, usual, self._max_batch)
            )
            profile.set_shape(tensor.name, low, middle, high)
            open_inputs += 1
        if open_inputs and config.add_optimization_profile(profile) < 0:
            raise self._refused("TensorRT refused the range of batch sizes")

    def _attach_timings(self, config: Any, kernel_timings: bytes) -> Any:
        """Start from what was measured before, or from nothing where that does not fit."""
        for data in (kernel_timings, b""):
            try:
                cache = config.create_timing_cache(data)
            except (RuntimeError, TypeError):
                continue
            if cache is not None and config.set_timing_cache(cache, False):
                return cache
        return None

    def _refused(self, reason: str) -> ModelNotLoadable:
        lines = reason.strip().splitlines() or ["unknown"]
        return ModelNotLoadable(self._path.name, lines[0][:300])


def _types(network: Any) -> set[str]:
    """Names of all element types in the network."""
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        tensors += [layer.get_output(position) for position in range(layer.num_outputs)]
    return {tensor.dtype.name for tensor in tensors if tensor is not None}


def _key(tensorrt: ModuleType, cuda: Cuda, path: Path, spec: ModelSpec, max_batch: int) -> str:
    parts = {
        "format": _FORMAT,
        "network": network_digest(path),
        "tensorrt": tensorrt.__version__,
        "gpu": cuda.device,
        "capability": cuda.capability,
        "precision": sorted(spec.precision.split("+")),
        "inputs": [(tensor.name, tensor.shape) for tensor in spec.inputs],
        "max_batch": max_batch,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


def _private(directory: Path) -> bool:
    """Whether the cache is there, ours, and closed to writers that are not us."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except OSError as error:
        log.warning("tensorrt.no_cache directory=%s reason=%s", directory, error.strerror)
        return False
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        log.warning("tensorrt.no_cache directory=%s reason=others may write there", directory)
        return False
    return True


def _read(entry: Path) -> Plan | None:
    """The plan in `entry`: one line of JSON, then the engine; None where it is not whole."""
    head, _, data = _read_bytes(entry).partition(b"\n")
    if not data:
        return None
    try:
        header = json.loads(head)
        whole = header["sha256"] == hashlib.sha256(data).hexdigest()
        plan = Plan(data, str(header["precision"]))
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        log.warning("tensorrt.damaged_engine file=%s", entry.name)
        return None
    os.utime(entry)
    return plan


def _write(entry: Path, plan: Plan) -> None:
    header = {"sha256": hashlib.sha256(plan.data).hexdigest(), "precision": plan.precision}
    _keep(entry, json.dumps(header).encode() + b"\n" + plan.data)


def _keep(path: Path, data: bytes) -> None:
    """Write to the cache; a full disk costs the next start its time, nothing else."""
    if not data:
        return
    try:
        write_whole(path, data)
    except OSError as error:
        log.warning("tensorrt.not_kept file=%s reason=%s", path.name, error.strerror)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _prune(directory: Path, keep: int) -> None:
    entries = sorted(directory.glob("*.engine"), key=lambda entry: entry.stat().st_mtime)
    for entry in entries[:-keep]:
        entry.unlink(missing_ok=True)
