"""A version beside the one that serves: it answers a share of the requests, or shadows them.

Rules:
    * A request enters the version that serves, whose `entry` is its lane.  While another is tried
      beside it, the entry is one of those here; without a trial there is nothing to ask.
    * A/B: who is drawn by a hash of the client's key, else of the request's id, is answered by the
      challenger, and the answer says so.  What that has no time for, the champion answers.
    * Shadow: the champion answers; then the same inputs may be computed by `shadow`.
    * A request that names a version is answered by that version; a shadow answers nobody.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from edge_agent.serve.errors import NotServable, Overloaded
from edge_agent.serve.lanes import Lane
from edge_agent.serve.metrics import ModelMetrics
from edge_agent.serve.prediction import Prediction, Reply
from edge_agent.serve.shadow import Shadow
from edge_agent.serve.split import Split
from edge_agent.wire.manifest import Manifest
from edge_agent.wire.messages import TrialMode

if TYPE_CHECKING:
    from edge_agent.serve.served_model import ServedModel


class Entry(Protocol):
    """Where the requests of a version enter."""

    def submit(self, prediction: Prediction) -> None:
        """As `Lane.submit`."""
        ...


class Trial:
    """What is tried beside one model.  Made and changed by the data plane, under its lock.

    Attributes:
        challenger: the version under trial.
        split: which keys are drawn.
        shadow: the silent lane, in mode "shadow" only.
    """

    def __init__(self, challenger: ServedModel, salt: str) -> None:
        """Nobody is drawn before `set`."""
        self.challenger = challenger
        self.mode: TrialMode = "ab"
        self.split = Split(salt, 0.0)
        self.shadow: Shadow | None = None

    @property
    def metrics(self) -> ModelMetrics:
        """Figures of the challenger."""
        return self.challenger.metrics if self.shadow is None else self.shadow.metrics

    def set(self, mode: TrialMode, share: float, live_waiting: Callable[[], int]) -> None:
        """Go on in this way.

        Args:
            live_waiting: how many requests of the champion have not begun.
        """
        self.split.share = share
        self.mode = mode
        if mode == "shadow" and self.shadow is None:
            challenger = self.challenger
            self.shadow = Shadow(challenger.manifest, challenger.pipeline, live_waiting)
        elif mode == "ab":
            self.leave(_nothing)

    def leave(self, then: Callable[[], None]) -> None:
        """Compute nothing silently any more; `then` is called when nothing is under way."""
        shadow, self.shadow = self.shadow, None
        if shadow is None:
            then()
        else:
            shadow.stop(then)

    def entry(self, champion: Lane, challenger: Callable[[], Lane]) -> Entry:
        """Where requests enter; on the event loop.

        Args:
            challenger: the challenger's lane, made when there is none.

        Raises:
            ModelNotServed: the challenger is closed already.
        """
        if self.shadow is not None:
            return _Shadowed(champion, self.shadow, self.split)
        return _Splitting(champion, self.challenger, challenger(), self.split)


class _Splitting:
    """A/B."""

    __slots__ = ("_challenger", "_champion_lane", "_lane", "_split")

    def __init__(self, champion: Lane, challenger: ServedModel, lane: Lane, split: Split) -> None:
        self._champion_lane = champion
        self._challenger = challenger
        self._lane = lane
        self._split = split

    def submit(self, prediction: Prediction) -> None:
        reply = prediction.done if isinstance(prediction.done, Reply) else None
        key = prediction.sticky if reply is None else reply.sticky
        if not self._split.takes(key or prediction.prediction_id):
            self._champion_lane.submit(prediction)
            return
        try:
            self._lane.submit(prediction)
        except Overloaded:
            self._challenger.metrics.shed("overloaded")
            self._champion_lane.submit(prediction)
            return
        prediction.manifest = self._challenger.manifest
        if reply is not None:
            reply.redirect(prediction.manifest)


class _Shadowed:
    """The champion answers, a sample of what it answered is offered to the shadow."""

    __slots__ = ("_champion_lane", "_shadow", "_split")

    def __init__(self, champion: Lane, shadow: Shadow, split: Split) -> None:
        self._champion_lane = champion
        self._shadow = shadow
        self._split = split

    def submit(self, prediction: Prediction) -> None:
        if random.random() < self._split.share and not prediction.trace:
            prediction.done = _Beside(prediction.done, self._shadow)
        self._champion_lane.submit(prediction)


class _Beside:
    """The `done` of a prediction that is to be shadowed: the client first."""

    __slots__ = ("_done", "_shadow")

    def __init__(self, done: Callable[[Prediction], None], shadow: Shadow) -> None:
        self._done = done
        self._shadow = shadow

    def __call__(self, prediction: Prediction) -> None:
        self._done(prediction)
        if prediction.error is None:
            self._shadow.offer(prediction)


class Alone:
    """The entry of a request that names a version: its lane, whatever is tried beside it."""

    __slots__ = ("_lane",)

    def __init__(self, lane: Callable[[], Lane]) -> None:
        self._lane = lane

    def submit(self, prediction: Prediction) -> None:
        self._lane().submit(prediction)


def same_interface(one: Manifest, other: Manifest) -> bool:
    """Whether both take and give the same, so that no client notices which one answers."""
    return (one.inputs, one.image, _given(one)) == (other.inputs, other.image, _given(other))


def require_same_interface(champion: Manifest, challenger: Manifest) -> None:
    """
    Raises:
        NotServable: the two are no `same_interface`.
    """
    if not same_interface(champion, challenger):
        what = "outputs" if champion.inputs == challenger.inputs else "inputs"
        raise NotServable(
            f"{challenger.model} {challenger.version} has other {what} than version "
            f"{champion.version}, so it cannot be tried beside it"
        )


def _nothing() -> None:
    """Nothing depends on the end."""


def _given(manifest: Manifest) -> dict[str, str]:
    return {spec.name: spec.datatype for spec in manifest.outputs}
