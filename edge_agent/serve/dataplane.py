"""The data plane: which model answers, and what is counted.  Knows no transport.

Rules:
    * A model is swapped by one reference assignment.  Requests that began with the old one end with
      it; the old one stays loaded for a roll-back, the one before it is closed when it is idle, and
      its memory is given back.
    * A model is loaded, warmed up and checked against its known answers before it is installed.
    * Requests come on one event loop; versions are installed from any one thread at a time.
    * Whatever the `observe` hook does, the prediction is answered.  Traces are not observed: they
      are a developer's questions, not the field's.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
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
    manifest_file,
)
from edge_agent.runtime import SessionError, Tensors, numpy_dtype
from edge_agent.runtime.memory import give_back
from edge_agent.serve.errors import Expired, ModelNotServed, NotServable, Overloaded
from edge_agent.serve.lanes import Batch, Lane
from edge_agent.serve.metrics import MetricsWindow, ModelMetrics, Snapshot
from edge_agent.serve.prediction import Prediction
from edge_agent.serve.replaced import ReplacedVersions
from edge_agent.wire.errors import WireError
from edge_agent.wire.manifest import CostModel, Manifest, TensorSpec

log = logging.getLogger("skerry.serve")

UNKNOWN_COST_US: Final = 1000.0
"""Assumed of a model whose cost nobody measured and that takes no zeros: a thread, no batches."""

_WARM_UP_RUNS: Final = 5
_LOG_PAUSE_S: Final = 1.0


Observe = Callable[[list[Prediction]], None]


class ServedModel:
    """One loaded version.  Made by `load`.

    Attributes:
        cost: of a batch of n, as measured in the cloud, or roughly at loading.
        memo: what a transport derived of this version; goes with it.
    """

    def __init__(
        self,
        manifest: Manifest,
        pipeline: Pipeline,
        cost: CostModel,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wrap an opened pipeline, which is owned from here on."""
        self.manifest = manifest
        self.pipeline = pipeline
        self.cost = cost
        self.metrics = ModelMetrics(clock())
        self.memo: dict[bytes, object] = {}
        self.lane: Lane | None = None
        self._lock = threading.Lock()
        self._retired = False
        self._closed = False

    @classmethod
    def load(cls, directory: Path, *, check_golden: bool = True) -> ServedModel:
        """Load the bundle in `directory`, warm it up and check its known answers.

        Raises:
            NotServable: the manifest, code, network or known answers are at fault.
        """
        try:
            manifest = manifest_file.read(directory)
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
        cost = manifest.cost or CostModel(per_item_us=measured_us, fixed_us=0.0)
        return cls(manifest, pipeline, cost)

    @property
    def name(self) -> str:
        return self.manifest.model

    @property
    def version(self) -> int:
        return self.manifest.version

    @property
    def waiting(self) -> int:
        """Requests that have not begun to run."""
        return 0 if self.lane is None else self.lane.waiting

    def open_lane(self, make: Callable[[Callable[[], None]], Lane]) -> Lane:
        """The lane, made by `make` if there is none; on the event loop.

        Raises:
            ModelNotServed: the version is closed already.
        """
        with self._lock:
            if self._closed:
                raise ModelNotServed(f"{self.name} {self.version} is closed")
            if self.lane is None:
                self.lane = make(self._on_idle)
            return self.lane

    def retire(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Close it as soon as nobody uses it.  From any thread.

        Args:
            loop: where requests come.  It is closed in a turn of its own there, so that a request
                that has just looked it up can still begin.
        """
        with self._lock:
            self._retired = True
        if loop is None or not loop.is_running():
            self._close()
        else:
            loop.call_soon_threadsafe(self._on_idle)

    def _on_idle(self) -> None:
        if self._retired and (self.lane is None or not self.lane.busy):
            # returning a large network's memory takes milliseconds
            threading.Thread(target=self._close, name="skerry-close", daemon=True).start()

    def _close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self.lane is not None:
            self.lane.close()
        self.pipeline.close()
        give_back()
        log.info("model.closed model=%s version=%d", self.name, self.version)


class DataPlane:
    """Models by name.  See the module for which thread calls what."""

    def __init__(
        self,
        observe: Observe | None = None,
        *,
        max_waiting: int = 1024,
        queue_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start empty.

        Args:
            observe: called with the predictions of each batch, on the event loop, after they were
                answered; must be cheap.
            max_waiting: requests that may wait for one model before it is overloaded.
            queue_s: a request without a time-out of its own is refused when its answer would take
                longer than this, or than the version's own limit.
            clock: seconds, for windows of metrics.
        """
        self.models: dict[str, ServedModel] = {}
        self.previous: dict[str, ServedModel] = {}
        self.refusals: Counter[str] = Counter()
        """Requests that got no prediction, by the name of the error; transports count here."""
        self._max_waiting = max_waiting
        self._queue_s = queue_s
        self._observe = observe
        self._clock = clock
        self._replaced = ReplacedVersions()
        self._lock = threading.Lock()
        self._id_prefix = os.urandom(5).hex()
        self._ids = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._log_again_s: dict[str, float] = {}
        self._not_logged: Counter[str] = Counter()

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say on which event loop requests come, before the first one does."""
        self._loop = loop

    # ── versions ─────────────────────────────────────────────────────────────────────────────────

    def install(self, name: str, model: ServedModel) -> None:
        """Serve `model` under `name` from the next request on; the one before stays loaded."""
        with self._lock:
            before = self.models.get(name)
            self._count_on(name, model, before)
            self.models = {**self.models, name: model}
            dropped = self.previous.pop(name, None)
            if before is not None and before is not model:
                self.previous[name] = before
        if dropped is not None and dropped is not model and dropped is not before:
            dropped.retire(self._loop)
        log.info("model.activated model=%s version=%d", name, model.version)

    def revert(self, name: str) -> bool:
        """Serve the previous version again, at once; False when none is loaded."""
        with self._lock:
            previous = self.previous.pop(name, None)
            if previous is None:
                return False
            failed = self.models[name]
            self._count_on(name, previous, failed)
            self.models = {**self.models, name: previous}
        failed.retire(self._loop)
        log.info("model.reverted model=%s version=%d", name, previous.version)
        return True

    def remove(self, name: str) -> bool:
        """Serve `name` no more."""
        with self._lock:
            remaining = dict(self.models)
            model = remaining.pop(name, None)
            self.models = remaining
            if model is not None:
                self._replaced.keep(name, model.version, model.metrics, self._clock())
            previous = self.previous.pop(name, None)
        for each in (model, previous):
            if each is not None:
                each.retire(self._loop)
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

    # ── requests ─────────────────────────────────────────────────────────────────────────────────

    def submit(self, model: ServedModel, prediction: Prediction) -> None:
        """Have `model` answer; on the event loop.  The prediction's `done` is called later.

        Raises:
            Overloaded: it would not be answered in time.
            ModelNotServed: the version was closed.
        """
        lane = model.lane
        if lane is None:
            self._loop = asyncio.get_running_loop()
            lane = model.open_lane(lambda idle: self._open_lane(model, idle))
        try:
            lane.submit(prediction)
        except Overloaded:
            model.metrics.shed("overloaded")
            raise

    async def predict(
        self,
        name: str,
        tensors: Tensors,
        *,
        version: str | None = None,
        prediction_id: str = "",
        timeout_s: float | None = None,
        trace: bool = False,
    ) -> Prediction:
        """Answer one request.

        Args:
            prediction_id: the client's id; made up when empty.
            timeout_s: the client is not interested in later answers.
            trace: keep what each step made.

        Raises:
            ModelNotServed: no such model or version.
            InputError: the tensors do not fit.
            Rejected: a checker refused them.
            Overloaded, Expired: there is no time for it.
            StepFailed: the pipeline failed.
        """
        arrived_s = time.perf_counter()
        model = self.model(name, version)
        items = model.pipeline.validate(tensors)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(_: Prediction) -> None:
            if not future.done():
                future.set_result(None)

        prediction = Prediction(
            prediction_id or self.new_id(), model.manifest, tensors, items, arrived_s, done
        )
        prediction.trace = trace
        if timeout_s is not None:
            prediction.deadline_s = arrived_s + timeout_s
        self.submit(model, prediction)
        try:
            await future
        except asyncio.CancelledError:
            prediction.cancelled = True
            raise
        if prediction.error is not None:
            raise prediction.error
        return prediction

    def new_id(self) -> str:
        """An id for a prediction, unique over restarts; all have the same length."""
        return f"{self._id_prefix}-{next(self._ids):012x}"

    # ── figures ──────────────────────────────────────────────────────────────────────────────────

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
        """Model, version and counts of all that serve."""
        now = self._clock()
        return [
            (name, model.version, model.metrics.snapshot(now, model.waiting))
            for name, model in sorted(self.models.items())
        ]

    def replaced_snapshots(self) -> list[tuple[str, int, Snapshot]]:
        """The same of versions that served a short while ago."""
        with self._lock:
            return list(self._replaced.snapshots(self._clock()))

    # ── inside ───────────────────────────────────────────────────────────────────────────────────

    def _count_on(self, name: str, model: ServedModel, before: ServedModel | None) -> None:
        """Have `model` count on where its version stopped, and keep what `before` counted."""
        now = self._clock()
        if before is not None and before is not model:
            self._replaced.keep(name, before.version, before.metrics, now)
        counts = self._replaced.take_back(name, model.version)
        if counts is not None and counts is not model.metrics:
            model.metrics = counts
            counts.restart(now)

    def _open_lane(self, model: ServedModel, idle: Callable[[], None]) -> Lane:
        return Lane(
            model.manifest,
            model.pipeline,
            model.cost,
            max_waiting=self._max_waiting,
            queue_s=self._queue_s,
            finished=lambda batch, runs: self._finish(model, batch, runs),
            idle=idle,
        )

    def _log_failure(self, model: ServedModel, error: Exception) -> None:
        """Log where a pipeline failed, once a second; its words may repeat what a client sent."""
        now = self._clock()
        if now < self._log_again_s.get(model.name, -math.inf):
            self._not_logged[model.name] += 1
            return
        self._log_again_s[model.name] = now + _LOG_PAUSE_S
        log.warning(
            "prediction.failed model=%s version=%d step=%s cause=%s more=%d",
            model.name,
            model.version,
            getattr(error, "step", "?"),
            type(error.__cause__ or error).__name__,
            self._not_logged.pop(model.name, 0),
        )

    def _finish(self, model: ServedModel, batch: Batch, runs: list[int]) -> None:
        """Answer the clients of a batch, then count."""
        now_s = time.perf_counter()
        answered: list[Prediction] = []
        metrics = model.metrics
        for each in batch:
            error = each.error
            if error is None:
                each.latency_us = (now_s - each.arrived_s) * 1e6
                metrics.predicted(each.latency_us)
                answered.append(each)
            elif isinstance(error, Rejected):
                metrics.rejected(error.reason)
            elif isinstance(error, Expired):
                if not each.cancelled:
                    metrics.shed("expired")
            elif not isinstance(error, InputError):
                metrics.failed()
                self._log_failure(model, error)
            try:
                each.done(each)
            except Exception:
                log.exception("answer.failed model=%s", model.name)
            each.done = _done  # whoever remembers the prediction holds no connection
        for size in runs:
            metrics.ran(size)
        if not answered:
            return
        if self._observe is not None and not batch[0].trace:  # a trace runs alone
            try:
                self._observe(answered)
            except Exception:
                log.exception("observe.failed model=%s", model.name)


def _done(_: Prediction) -> None:
    """What remains of the `done` of an answered prediction."""


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
    fastest_s = float("inf")
    for _ in range(_WARM_UP_RUNS):
        start = time.perf_counter()
        try:
            pipeline.run(inputs)
        except (Rejected, InputError):
            return UNKNOWN_COST_US
        fastest_s = min(fastest_s, time.perf_counter() - start)
    return fastest_s * 1e6


def _zeros(spec: TensorSpec) -> np.ndarray:
    shape = [1 if size < 0 else size for size in spec.shape]
    dtype = numpy_dtype(spec.datatype)
    return np.full(shape, b"", dtype=dtype) if dtype.kind == "O" else np.zeros(shape, dtype=dtype)
