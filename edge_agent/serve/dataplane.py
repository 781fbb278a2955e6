"""The data plane: which model answers, and what is counted.  Knows no transport.

Rules:
    * A model is swapped by one reference assignment.  Requests that began with the old one end with
      it; the old one stays loaded for a roll-back, the one before it is closed when it is idle.
    * A model is loaded, warmed up and checked against its known answers before it is installed.
    * Whatever the `observe` hook does, the prediction is answered.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np

from edge_agent.pipeline import (
    GoldenMismatch,
    InputError,
    Pipeline,
    PipelineError,
    Rejected,
    StepError,
    golden,
)
from edge_agent.runtime import Array, SessionError, Tensors, numpy_dtype
from edge_agent.serve.errors import ModelNotServed, NotServable, Overloaded
from edge_agent.serve.metrics import MetricsWindow, ModelMetrics, Snapshot
from edge_agent.wire.errors import WireError
from edge_agent.wire.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, TensorSpec

log = logging.getLogger("skerry.serve")

INLINE_LIMIT_US: Final = 300.0
"""Requests up to this run on the event loop: a hop to a thread costs a good part of it."""

_WARM_UP_RUNS: Final = 5


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answered request, as observers see it.

    The arrays are the request's and the answer's own; an observer that keeps them copies them.
    """

    prediction_id: str
    model: str
    version: int
    manifest: Manifest
    inputs: Tensors
    outputs: Tensors
    latency_us: float


class ServedModel:
    """One loaded version, with its use count.  Made by `load`."""

    def __init__(
        self,
        manifest: Manifest,
        pipeline: Pipeline,
        *,
        service_us: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wrap an opened pipeline, which is owned from here on.

        Args:
            service_us: time of one item; decides what runs on the event loop.
        """
        self.manifest = manifest
        self.pipeline = pipeline
        self.service_us = service_us
        self.metrics = ModelMetrics(clock())
        self._lock = threading.Lock()
        self._users = 0
        self._retired = False

    @classmethod
    def load(cls, directory: Path, *, check_golden: bool = True) -> ServedModel:
        """Load the bundle in `directory`, warm it up and check its known answers.

        Raises:
            NotServable: the manifest, code, network or known answers are at fault.
        """
        try:
            data = (directory / MANIFEST_NAME).read_bytes()
            manifest = Manifest.decode(data, limit=MAX_MANIFEST_BYTES)
            pipeline = Pipeline.open(directory, manifest)
        except (OSError, WireError, PipelineError, SessionError) as error:
            raise NotServable(f"{directory.name}: {error}") from error
        try:
            if check_golden and manifest.golden is not None:
                golden.check(pipeline, directory / manifest.golden, manifest.golden_atol)
            measured_us = _warm_up(pipeline, directory, manifest)
        except (GoldenMismatch, StepError) as error:
            pipeline.close()
            raise NotServable(f"{manifest.model} {manifest.version}: {error}") from error
        cost = manifest.cost
        service_us = measured_us if cost is None else cost.per_item_us + cost.fixed_us
        return cls(manifest, pipeline, service_us=service_us)

    @property
    def name(self) -> str:
        return self.manifest.model

    @property
    def version(self) -> int:
        return self.manifest.version

    def inline(self, items: int = 1) -> bool:
        """Whether a request of `items` is fast enough to run on the event loop."""
        cost = self.manifest.cost
        more_us = self.service_us if cost is None else cost.per_item_us
        return self.service_us + (items - 1) * more_us <= INLINE_LIMIT_US

    def __enter__(self) -> ServedModel:
        with self._lock:
            if self._retired and self._users == 0:
                raise ModelNotServed(f"{self.name} {self.version} is closed")
            self._users += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._users -= 1
            idle = self._retired and self._users == 0
        if idle:
            self.pipeline.close()

    def retire(self) -> None:
        """Close it as soon as nobody uses it."""
        with self._lock:
            self._retired = True
            idle = self._users == 0
        if idle:
            self.pipeline.close()


class DataPlane:
    """Models by name.  `infer` is safe from several threads; `install` from any one at a time."""

    def __init__(
        self,
        observe: Callable[[Prediction], None] | None = None,
        *,
        max_waiting: int = 64,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start empty.

        Args:
            observe: called after each prediction, on the thread that answered it; must be cheap.
            max_waiting: requests that may be in the works for one model before it is overloaded.
            clock: seconds, for windows of metrics.
        """
        self.models: dict[str, ServedModel] = {}
        self.previous: dict[str, ServedModel] = {}
        self.max_waiting = max_waiting
        self._observe = observe
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[str, int] = {}
        self._id_prefix = os.urandom(5).hex()
        self._id_count = 0

    def install(self, name: str, model: ServedModel) -> None:
        """Serve `model` under `name` from the next request on; the one before stays loaded."""
        with self._lock:
            before = self.models.get(name)
            self.models = {**self.models, name: model}
            dropped = self.previous.pop(name, None)
            if before is not None and before is not model:
                self.previous[name] = before
        if dropped is not None and dropped is not model and dropped is not before:
            dropped.retire()
        log.info("model.activated model=%s version=%d", name, model.version)

    def revert(self, name: str) -> bool:
        """Serve the previous version again, at once; False when none is loaded."""
        with self._lock:
            previous = self.previous.pop(name, None)
            if previous is None:
                return False
            failed = self.models[name]
            self.models = {**self.models, name: previous}
        failed.retire()
        log.info("model.reverted model=%s version=%d", name, previous.version)
        return True

    def remove(self, name: str) -> bool:
        """Serve `name` no more."""
        with self._lock:
            remaining = dict(self.models)
            model = remaining.pop(name, None)
            self.models = remaining
            previous = self.previous.pop(name, None)
        for each in (model, previous):
            if each is not None:
                each.retire()
        return model is not None

    def close(self) -> None:
        """Remove everything."""
        for name in list(self.models):
            self.remove(name)

    def model(self, name: str, version: str | None = None) -> ServedModel:
        """The model that serves `name` now.

        Raises:
            ModelNotServed: there is none, or it has another version.
        """
        model = self.models.get(name)
        if model is None:
            raise ModelNotServed(f"no model {name!r} is served here")
        if version is not None and version != str(model.version):
            raise ModelNotServed(f"model {name!r} is served in version {model.version} only")
        return model

    def admit(self, name: str) -> None:
        """Count a request that is about to wait; `release` it whatever happens.

        Raises:
            Overloaded: `max_waiting` requests are in the works already.
        """
        with self._lock:
            waiting = self._waiting.get(name, 0)
            if waiting >= self.max_waiting:
                raise Overloaded(name)
            self._waiting[name] = waiting + 1

    def release(self, name: str) -> None:
        with self._lock:
            self._waiting[name] -= 1

    def infer(
        self,
        name: str,
        tensors: Mapping[str, Array],
        *,
        version: str | None = None,
        prediction_id: str = "",
        arrived_s: float | None = None,
    ) -> Prediction:
        """Answer one request on this thread.

        Args:
            prediction_id: the client's id; made up when empty.
            arrived_s: when the request was accepted (`time.perf_counter`), so that waiting counts.

        Raises:
            ModelNotServed: no such model or version.
            InputError: the tensors do not fit.
            Rejected: a checker refused them.
            StepFailed: the pipeline failed.
        """
        start = time.perf_counter() if arrived_s is None else arrived_s
        while True:
            try:
                with self.model(name, version) as model:
                    return self._infer(model, tensors, prediction_id or self.new_id(), start)
            except ModelNotServed:
                if self.models.get(name) is None or version is not None:
                    raise
                # closed between look-up and use: two swaps in that moment; look again

    def window_metrics(self, name: str, reader: str = "report") -> MetricsWindow:
        """Figures of the version that serves `name`, since `reader` last asked.

        Args:
            reader: each has a window of its own, e.g. "report" and "probation".

        Raises:
            ModelNotServed: no such model.
        """
        model = self.model(name)
        return model.metrics.window(reader, model.version, self._clock())

    def snapshots(self) -> list[tuple[str, int, Snapshot]]:
        """Counts of all models that serve, for exposition."""
        now = self._clock()
        return [
            (name, model.version, model.metrics.snapshot(now))
            for name, model in sorted(self.models.items())
        ]

    def new_id(self) -> str:
        """An id for a prediction, unique over restarts."""
        with self._lock:
            self._id_count += 1
            return f"{self._id_prefix}-{self._id_count:x}"

    def _infer(
        self, model: ServedModel, tensors: Mapping[str, Array], prediction_id: str, start: float
    ) -> Prediction:
        try:
            result = model.pipeline.run(tensors)
        except InputError:
            raise
        except Rejected:
            model.metrics.rejected()
            raise
        except PipelineError as error:
            model.metrics.failed()
            log.warning("prediction.failed model=%s error=%s", model.name, error)
            raise
        latency_us = (time.perf_counter() - start) * 1e6
        model.metrics.predicted(latency_us)
        prediction = Prediction(
            prediction_id, model.name, model.version, model.manifest,
            dict(tensors), result.tensors, latency_us,
        )  # fmt: skip
        if self._observe is not None:
            try:
                self._observe(prediction)
            except Exception:
                log.exception("observe.failed model=%s", model.name)
        return prediction


def _warm_up(pipeline: Pipeline, directory: Path, manifest: Manifest) -> float:
    """Run one item a few times; the fastest run in µs.

    Known answers make the best warm-up.  Without them zeros are fed, which a checker may refuse.
    """
    if manifest.golden is not None:
        inputs, _ = golden.read(directory / manifest.golden)
        if all(spec.shape and spec.shape[0] == -1 for spec in manifest.inputs):
            inputs = {name: array[:1] for name, array in inputs.items()}
    else:
        inputs = {spec.name: _zeros(spec) for spec in manifest.inputs}
    fastest = float("inf")
    for _ in range(_WARM_UP_RUNS):
        start = time.perf_counter()
        try:
            pipeline.run(inputs)
        except (Rejected, InputError):
            return INLINE_LIMIT_US + 1  # unknown, so treated as slow
        fastest = min(fastest, time.perf_counter() - start)
    return fastest * 1e6


def _zeros(spec: TensorSpec) -> Array:
    shape = [1 if size < 0 else size for size in spec.shape]
    dtype = numpy_dtype(spec.datatype)
    return np.full(shape, b"", dtype=dtype) if dtype.kind == "O" else np.zeros(shape, dtype=dtype)
