"""The silent lane: a version computes what another has answered, and the differences are counted.

Rules:
    * The live answer is sent before its inputs are offered here, and nothing here can reach it.
    * What waits is bounded in requests and bytes.  While live requests wait for their own version,
      nothing is taken and nothing is begun; what is left out is counted.
    * One thread of the lowest priority, busy half of the time at most.
    * Arrays are kept as they are: nobody writes to the inputs or outputs of an answered request.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from edge_agent.pipeline import Pipeline, Rejected
from edge_agent.runtime import Tensors
from edge_agent.serve.differences import Differences
from edge_agent.serve.metrics import ModelMetrics
from edge_agent.serve.prediction import Prediction
from edge_agent.wire.manifest import Manifest
from edge_agent.wire.messages import ComparisonReport

log = logging.getLogger("skerry.serve")

MAX_WAITING: Final = 32
MAX_WAITING_BYTES: Final = 8 << 20
_DUTY: Final = 0.5
_LONGEST_PAUSE_S: Final = 5.0
_NICEST: Final = 19


@dataclass(frozen=True, slots=True)
class _Work:
    inputs: Tensors
    outputs: Tensors
    manifest: Manifest
    items: int
    size: int


class Shadow:
    """See the module.  `offer` on the event loop; the rest from any thread.

    Attributes:
        metrics: of what was computed; times are of the computation alone.
    """

    def __init__(
        self,
        manifest: Manifest,
        pipeline: Pipeline,
        live_waiting: Callable[[], int],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the thread.

        Args:
            pipeline: of the version that computes; to be closed after `stop` has called back.
            live_waiting: how many live requests have not begun.
        """
        self.metrics = ModelMetrics(clock())
        self._manifest = manifest
        self._pipeline = pipeline
        self._live_waiting = live_waiting
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._offered = self._offered_bytes = 0  # counted by the event loop alone
        self._taken = self._taken_bytes = 0  # by the thread alone
        self._lock = threading.Lock()
        self._differences = Differences()
        self._stopping = threading.Event()
        self._stopped: Callable[[], None] = _nothing
        self._logged: set[str] = set()
        name = f"shadow-{manifest.model}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that were taken and are not compared yet."""
        return self._offered - self._taken

    def offer(self, prediction: Prediction) -> None:
        """Take what was just answered, unless that could be in anybody's way."""
        size = sum([array.nbytes for array in prediction.inputs.values()])
        size += sum([array.nbytes for array in prediction.outputs.values()])
        waiting = self.waiting
        if (
            waiting >= MAX_WAITING
            or (waiting and self._offered_bytes - self._taken_bytes + size > MAX_WAITING_BYTES)
            or self._live_waiting()
        ):
            self._shed()
            return
        self._offered += 1
        self._offered_bytes += size
        self._queue.put(
            _Work(
                prediction.inputs,
                prediction.outputs,
                prediction.manifest,
                prediction.items,
                size,
            )
        )

    def take_report(self) -> ComparisonReport | None:
        """What was counted since the last call; None when that is nothing."""
        with self._lock:
            taken, self._differences = self._differences, Differences()
        return None if taken.empty else taken.report()

    def stop(self, stopped: Callable[[], None]) -> None:
        """End soon; `stopped` is called when the pipeline is not used any more."""
        self._stopped = stopped
        self._stopping.set()
        self._queue.put(None)

    # ── on the thread ────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # of this thread alone, on Linux
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICEST)
        while (work := self._queue.get()) is not None and not self._stopping.is_set():
            began_s = time.perf_counter()
            if self._live_waiting():
                self._shed()
            else:
                try:
                    self._compare(work)
                except Exception:
                    log.exception("shadow.failed model=%s", self._manifest.model)
            self._taken_bytes += work.size
            self._taken += 1
            del work  # while it waits it holds nobody's tensors
            took_s = time.perf_counter() - began_s
            self._stopping.wait(min(took_s * (1 / _DUTY - 1), _LONGEST_PAUSE_S))
        self._stopped()

    def _compare(self, work: _Work) -> None:
        began_s = time.perf_counter()
        try:
            outputs = self._pipeline.answer(work.inputs)
        except Rejected as error:
            self.metrics.rejected(error.reason)
        except Exception as error:
            self.metrics.failed()
            self._log_once(error)
        else:
            self.metrics.predicted((time.perf_counter() - began_s) * 1e6)
            with self._lock:
                self._differences.add(
                    work.outputs, work.manifest, outputs, self._manifest, work.items
                )
            return
        with self._lock:
            self._differences.errors += 1

    def _shed(self) -> None:
        with self._lock:
            self._differences.shed += 1

    def _log_once(self, error: Exception) -> None:
        """Each kind of failure once: its words may repeat what a client sent."""
        cause = type(error.__cause__ or error).__name__
        if cause not in self._logged:
            self._logged.add(cause)
            log.warning(
                "shadow.prediction_failed model=%s version=%d cause=%s",
                self._manifest.model,
                self._manifest.version,
                cause,
            )


def _nothing() -> None:
    """Nobody waits for the end."""
