"""One loaded version: opened, warmed up and checked against its known answers, and later closed.

Closed when nobody uses it any more; its memory is given back then.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
import time
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
from edge_agent.runtime import SessionError, numpy_dtype
from edge_agent.runtime.memory import give_back
from edge_agent.serve.errors import ModelNotServed, NotServable
from edge_agent.serve.lanes import Lane
from edge_agent.serve.metrics import ModelMetrics
from edge_agent.serve.trials import Alone, Entry
from edge_agent.wire.errors import WireError
from edge_agent.wire.manifest import CostModel, Manifest, TensorSpec

log = logging.getLogger("skerry.serve")

UNKNOWN_COST_US: Final = 1000.0
"""Assumed of a model whose cost nobody measured and that takes no zeros: a thread, no batches."""

_WARM_UP_RUNS: Final = 5


class ServedModel:
    """One loaded version.  Made by `load`.

    Attributes:
        cost: of a batch of n, as measured in the cloud, or roughly at loading.
        memo: what a transport derived of this version; goes with it.
        entry: where its requests enter; None until the data plane has found out.
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
        self.entry: Entry | None = None
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

    def alone(self, lane: Callable[[], Lane]) -> ServedModel:
        """This version for a request that names it, whatever is tried beside it."""
        view = copy.copy(self)
        view.entry = Alone(lane)
        return view

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
