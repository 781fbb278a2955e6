"""One request on its way through the data plane, and then its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edge_agent.runtime import Tensors
from edge_agent.wire.manifest import Manifest


class Prediction:
    """See the module.  Made once for every request, so what is rarely set has a class default.

    Attributes:
        inputs: as the client sent them.  They may be views of its message: whoever keeps them
            copies them.
        items: length of the leading axis that all inputs share.
        done: called on the event loop when `outputs` or `error` is there.
        arrived_s, deadline_s: on the clock of `time.perf_counter`; without a deadline None.
        group: only predictions of an equal group can share a batch: shapes behind the leading axis.
        foreseen_s: when it was expected to be done, on admission to a worker's lane.
        cancelled: set by whoever has lost interest; it is dropped if it has not begun.
        outputs: what the pipeline answered; perhaps views of a batch.
        error: why there is no answer: an error of `pipeline`, or `Expired`.
        latency_us: from arrival to the answer.
        sticky: the client's key where a version is tried; whoever gives it, keeps its version.
        steps: after each step its name and tensors, if `trace` asked for them.
    """

    outputs: Tensors
    error: Exception | None = None
    deadline_s: float | None = None
    foreseen_s: float = 0.0
    latency_us: float = 0.0
    group: tuple[tuple[int, ...], ...] | None = None
    cancelled: bool = False
    trace: bool = False
    sticky: str = ""
    steps: Sequence[tuple[str, Tensors]] = ()

    def __init__(
        self,
        prediction_id: str,
        manifest: Manifest,
        inputs: Tensors,
        items: int,
        arrived_s: float,
        done: Callable[[Prediction], None],
    ) -> None:
        self.prediction_id = prediction_id
        self.manifest = manifest
        self.inputs = inputs
        self.items = items
        self.arrived_s = arrived_s
        self.done = done

    def is_over(self, now_s: float) -> bool:
        """Whether nobody would read the answer any more."""
        return self.cancelled or (self.deadline_s is not None and self.deadline_s < now_s)

    @property
    def model(self) -> str:
        return self.manifest.model

    @property
    def version(self) -> int:
        return self.manifest.version


class Reply:
    """A `done` that cares which version answers, or knows who asks."""

    __slots__ = ()

    def __call__(self, prediction: Prediction) -> None:
        """Answer the client."""
        raise NotImplementedError

    @property
    def sticky(self) -> str:
        """The key that the client gave; empty without one."""
        raise NotImplementedError

    def redirect(self, manifest: Manifest) -> None:
        """The version of `manifest` answers instead of the one that was asked."""
        raise NotImplementedError
