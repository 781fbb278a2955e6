"""The data plane: which model answers, and what is counted.  Knows no transport.

Rules:
    * A model is swapped by one reference assignment.  Requests that began with the old one end with
      it; the old one stays loaded for a roll-back, the one before it is closed when it is idle, and
      its memory is given back.
    * A model is loaded, warmed up and checked against its known answers before it is installed.
    * Another version may be tried beside the one that serves (`trials`); it is none of the two.
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
from typing import Final

from edge_agent.pipeline import InputError, Rejected
from edge_agent.runtime import Tensors
from edge_agent.serve.errors import Expired, ModelNotServed, Overloaded
from edge_agent.serve.lanes import Batch, Lane
from edge_agent.serve.metrics import MetricsWindow, Snapshot
from edge_agent.serve.prediction import Prediction
from edge_agent.serve.replaced import ReplacedVersions
from edge_agent.serve.served_model import ServedModel
from edge_agent.serve.trials import Entry, Trial, require_same_interface, same_interface
from edge_agent.wire.messages import ComparisonReport, TrialMode

log = logging.getLogger("skerry.serve")

_LOG_PAUSE_S: Final = 1.0

Observe = Callable[[list[Prediction]], None]


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
        self.trials: dict[str, Trial] = {}
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
        """Serve `model` under `name` from the next request on; the one before stays loaded.

        What is tried beside it goes on, unless it takes or gives something else.
        """
        trial = self.trials.get(name)
        if trial is not None and not same_interface(model.manifest, trial.challenger.manifest):
            self.end_trial(name)
        with self._lock:
            before = self.models.get(name)
            self._count_on(name, model, before)
            self.models = {**self.models, name: model}
            dropped = self.previous.pop(name, None)
            if before is not None and before is not model:
                self.previous[name] = before
            self._try_beside_another(name)
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
            self._try_beside_another(name)
        failed.retire(self._loop)
        log.info("model.reverted model=%s version=%d", name, previous.version)
        return True

    def remove(self, name: str) -> bool:
        """Serve `name` no more."""
        self.end_trial(name)
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
        return model if version is None else self._version(name, model, version)

    # ── trials ───────────────────────────────────────────────────────────────────────────────────

    def try_beside(
        self, name: str, challenger: ServedModel, mode: TrialMode, share: float, salt: str
    ) -> None:
        """Try `challenger` beside what serves `name`, instead of what was tried before.

        Args:
            share: of the requests, 0 to 1.
            salt: tells trials apart; see `split`.

        Raises:
            NotServable: it takes or gives something else than the version that serves.
            ModelNotServed: nothing serves `name`.
        """
        require_same_interface(self.model(name).manifest, challenger.manifest)
        self.end_trial(name)
        trial = Trial(challenger, salt)
        with self._lock:
            self.trials[name] = trial
            self._set_trial(name, trial, mode, share)
        log.info(
            "trial.started model=%s version=%d mode=%s share=%g",
            name, challenger.version, mode, share,
        )  # fmt: skip

    def set_trial(self, name: str, mode: TrialMode, share: float) -> None:
        """Go on with the trial of `name` in this way; nothing is loaded.

        Raises:
            ModelNotServed: nothing is tried there.
        """
        with self._lock:
            self._set_trial(name, self._trial(name), mode, share)
        log.info("trial.changed model=%s mode=%s share=%g", name, mode, share)

    def end_trial(self, name: str) -> bool:
        """Close what is tried beside `name`; False when that is nothing."""
        with self._lock:
            trial = self._pop_trial(name)
        if trial is None:
            return False
        trial.leave(lambda: trial.challenger.retire(self._loop))
        log.info("trial.ended model=%s version=%d", name, trial.challenger.version)
        return True

    def promote(self, name: str) -> bool:
        """Serve what is tried beside `name` in its place; False when that is nothing."""
        with self._lock:
            trial = self._pop_trial(name)
        if trial is None:
            return False
        trial.leave(_nothing)
        trial.challenger.metrics.restart(self._clock())
        self.install(name, trial.challenger)
        return True

    # ── requests ─────────────────────────────────────────────────────────────────────────────────

    def submit(self, model: ServedModel, prediction: Prediction) -> None:
        """Have `model` answer; on the event loop.  The prediction's `done` is called later.

        Raises:
            Overloaded: it would not be answered in time.
            ModelNotServed: the version was closed.
        """
        entry = model.entry
        if entry is None:
            entry = self._enter(model)
        try:
            entry.submit(prediction)
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
        sticky: str = "",
    ) -> Prediction:
        """Answer one request.

        Args:
            prediction_id: the client's id; made up when empty.
            sticky: the client's key; those of the same key are answered by the same version.
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
        prediction.sticky = sticky
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

    def trial_metrics(self, name: str, reader: str = "report") -> MetricsWindow:
        """As `window_metrics` of the version that is tried beside it.

        Raises:
            ModelNotServed: nothing is tried there.
        """
        with self._lock:
            trial = self._trial(name)
            return trial.metrics.window(reader, trial.challenger.version, self._clock())

    def take_comparison(self, name: str) -> ComparisonReport | None:
        """How a shadow's answers differed since the last call; None when none was compared."""
        with self._lock:
            trial = self.trials.get(name)
            return None if trial is None or trial.shadow is None else trial.shadow.take_report()

    def snapshots(self) -> list[tuple[str, int, Snapshot]]:
        """Model, version and counts of all that serve; of a shadow nobody is served."""
        now = self._clock()
        with self._lock:
            beside = {
                name: trial.challenger for name, trial in self.trials.items() if trial.mode == "ab"
            }
        return [
            (name, each.version, each.metrics.snapshot(now, each.waiting))
            for name, model in sorted(self.models.items())
            for each in (model, beside.get(name))
            if each is not None
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

    def _version(self, name: str, model: ServedModel, version: str) -> ServedModel:
        """The version that a request names.

        Raises:
            ModelNotServed: it serves nobody.
        """
        trial = self.trials.get(name)
        if trial is not None and trial.mode == "ab" and version == str(trial.challenger.version):
            return trial.challenger
        if version != str(model.version):
            raise ModelNotServed(f"model {name!r} is served in version {model.version} only")
        return model if trial is None else model.alone(lambda: self._lane(model))

    def _trial(self, name: str) -> Trial:
        trial = self.trials.get(name)
        if trial is None:
            raise ModelNotServed(f"nothing is tried beside model {name!r}")
        return trial

    def _set_trial(self, name: str, trial: Trial, mode: TrialMode, share: float) -> None:
        trial.set(mode, share, lambda: self._waiting(name))
        self.models[name].entry = None  # the next request finds out

    def _pop_trial(self, name: str) -> Trial | None:
        trial = self.trials.pop(name, None)
        if trial is not None:
            champion, challenger = self.models.get(name), trial.challenger
            if champion is not None:
                champion.entry = None
            if trial.mode == "ab":
                self._replaced.keep(name, challenger.version, challenger.metrics, self._clock())
        return trial

    def _try_beside_another(self, name: str) -> None:
        """What serves `name` has changed; what is tried beside it has not."""
        for model in (self.models.get(name), self.previous.get(name)):
            if model is not None:
                model.entry = None

    def _waiting(self, name: str) -> int:
        model = self.models.get(name)
        return 0 if model is None else model.waiting

    def _enter(self, model: ServedModel) -> Entry:
        """Find out where the requests of a version enter; on the event loop.

        Raises:
            ModelNotServed: it was closed.
        """
        self._loop = asyncio.get_running_loop()
        with self._lock:
            lane = self._lane(model)
            entry: Entry = lane
            trial = self.trials.get(model.name)
            if trial is not None and self.models.get(model.name) is model:
                entry = trial.entry(lane, lambda: self._lane(trial.challenger))
            model.entry = entry
            return entry

    def _lane(self, model: ServedModel) -> Lane:
        return model.open_lane(lambda idle: self._open_lane(model, idle))

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


def _nothing() -> None:
    """Nothing depends on the end of a shadow."""


def _done(_: Prediction) -> None:
    """What remains of the `done` of an answered prediction."""
