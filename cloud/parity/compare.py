"""The comparison of two traces.  Pure: arrays in, findings out.

Rules:
    * Integers, labels, texts and truth values must be equal; floats may be apart by
      `atol + rtol·|expected|`.
    * NaN agrees with no number.  NaN on both sides at the same place is not counted as a
      difference, but proves nothing: in an answer it makes the verdict INCONCLUSIVE.
    * A tensor that is missing, or has another shape or element type, differs whatever it holds.
    * The first step that differs is the finding; later ones differ on its account.
    * A comparison that compared nothing is INCONCLUSIVE, never PARITY.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, computed_field

from cloud.parity.traces import Stop, Trace
from edge_agent.pipeline import Array, Tensors

Verdict = Literal["PARITY", "DIFFERS", "INCONCLUSIVE"]
Against = Literal["batch of 1", "device"]
Kind = Literal["values", "shape", "datatype", "missing", "refused", "failed"]

ANSWER: Final = "answer"
"""Stands as a step behind the last one: the outputs that the interface names."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far floats may lie apart: `atol + rtol·|expected|`."""

    atol: float
    rtol: float = 0.0


class Finding(BaseModel):
    """How one tensor after one step compares, over all batches.

    Attributes:
        index: position of the step in the pipeline, from 0; behind the last it is the answer.
        tensor: empty where the step as a whole differs.
        differs: kind of difference; None where there is none.
        detail: one line on what the figures do not tell.
        elements, differing: numbers of elements compared, and of those that differ.
        max_abs, max_rel: largest finite distances of numbers; None where there were none.
        undecided: elements that are NaN on both sides.
    """

    model_config = ConfigDict(frozen=True)

    index: int
    step: str
    tensor: str
    differs: Kind | None = None
    detail: str = ""
    elements: int = 0
    differing: int = 0
    max_abs: float | None = None
    max_rel: float | None = None
    undecided: int = 0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def share(self) -> float:
        """Share of elements that differ."""
        return self.differing / self.elements if self.elements else 1.0 if self.differs else 0.0


class Comparison(BaseModel):
    """One side against the other at one batch size.

    Attributes:
        against: what is held up as right: this pipeline item by item, or, for the device, this
            pipeline at the same batch size.
        items: items that were compared; one that fills up a last batch counts again.
        refused: items of those that both sides refused for the same reason.
        first: the first step that differs.
        label_flips: items whose label differs; None where the answer has no labels.
        findings: every tensor of every step, in order.
        notes: what keeps the comparison from saying more.
    """

    model_config = ConfigDict(frozen=True)

    against: Against
    batch: int
    verdict: Verdict
    items: int
    refused: int
    first: Finding | None
    label_flips: int | None
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()


def overall(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict over all comparisons."""
    found = set(verdicts)
    if "DIFFERS" in found:
        return "DIFFERS"
    return "PARITY" if found == {"PARITY"} else "INCONCLUSIVE"


def compare(
    expected: Trace,
    actual: Trace,
    tolerance: Tolerance,
    *,
    against: Against = "device",
    batch: int = 1,
    steps: Sequence[str] = (),
    classes: int = 0,
) -> Comparison:
    """One pair of traces; see `Ledger` for several."""
    ledger = Ledger(tolerance, steps or [name for name, _ in expected.steps], classes)
    ledger.add(expected, actual, batch)
    return ledger.close(against, batch)


class Ledger:
    """Adds up what pairs of traces show.

    Args:
        steps: names of the pipeline's steps.
        classes: number of the model's labels, by which scores are known; 0 if it has none.
    """

    def __init__(self, tolerance: Tolerance, steps: Sequence[str], classes: int = 0) -> None:
        self._tolerance = tolerance
        self._steps = tuple(steps)
        self._classes = classes
        self._findings: dict[tuple[int, str], Finding] = {}
        self._items = 0
        self._refused = 0
        self._flips: int | None = None
        self._notes: list[str] = []
        self._incomplete = False

    def add(self, expected: Trace, actual: Trace, items: int) -> None:
        """Compare one more pair; both are of the same batch of `items`."""
        self._items += items
        if expected.stop is not None or actual.stop is not None:
            self._stopped(expected, actual, items)
        if actual.shows_steps and expected.shows_steps:
            self._compare_steps(expected, actual)
        if expected.stop is None and actual.stop is None:
            self._tensors(len(self._steps), ANSWER, expected.outputs, actual.outputs)
            self._count_flips(expected.outputs, actual.outputs)

    def incomplete(self, note: str) -> None:
        """Something could not be compared, so that PARITY must not be said."""
        self._incomplete = True
        if note not in self._notes:
            self._notes.append(note)

    def close(self, against: Against, batch: int) -> Comparison:
        """What all pairs show together."""
        findings = tuple(self._findings[key] for key in sorted(self._findings))
        first = next((finding for finding in findings if finding.differs), None)
        unproven = sum(
            finding.undecided for finding in findings if finding.index == len(self._steps)
        )
        if unproven:
            self.incomplete(f"{unproven} values of the answer are NaN on both sides")
        verdict: Verdict = "PARITY"
        if first is not None:
            verdict = "DIFFERS"
        elif self._incomplete or self._items == self._refused:
            verdict = "INCONCLUSIVE"
            if self._items and self._items == self._refused:
                self._notes.append("every item is refused, so that nothing was compared")
        return Comparison(
            against=against,
            batch=batch,
            verdict=verdict,
            items=self._items,
            refused=self._refused,
            first=first,
            label_flips=self._flips,
            findings=findings,
            notes=tuple(self._notes),
        )

    # ── steps and their tensors ──────────────────────────────────────────────────────────────────

    def _compare_steps(self, expected: Trace, actual: Trace) -> None:
        # a side that stopped has fewer steps; that is noted once, by `_stopped`
        for index, (ours, theirs) in enumerate(zip(expected.steps, actual.steps, strict=False)):
            name = self._name(index)
            if ours[0] != theirs[0]:
                detail = f"the step is {theirs[0]!r} there"
                self._note(Finding(index=index, step=name, tensor="", differs="missing",
                                   detail=detail))  # fmt: skip
                return
            self._tensors(index, name, ours[1], theirs[1])

    def _tensors(self, index: int, step: str, expected: Tensors, actual: Tensors) -> None:
        for name in dict.fromkeys((*expected, *actual)):
            ours, theirs = expected.get(name), actual.get(name)
            if ours is None or theirs is None:
                detail = "only the other side has it" if ours is None else "the other side lacks it"
                found = _Gap("missing", detail)
            else:
                found = gap(ours, theirs, self._tolerance)
            self._note(
                Finding(
                    index=index,
                    step=step,
                    tensor=name,
                    differs=found.differs,
                    detail=found.detail,
                    elements=found.elements,
                    differing=found.differing,
                    max_abs=found.max_abs,
                    max_rel=found.max_rel,
                    undecided=found.undecided,
                )
            )

    def _note(self, new: Finding) -> None:
        key = (new.index, new.tensor)
        old = self._findings.get(key)
        if old is None:
            self._findings[key] = new
            return
        worse = old if old.differs else new
        self._findings[key] = Finding(
            index=new.index,
            step=new.step,
            tensor=new.tensor,
            differs=worse.differs,
            detail=worse.detail,
            elements=old.elements + new.elements,
            differing=old.differing + new.differing,
            max_abs=_larger(old.max_abs, new.max_abs),
            max_rel=_larger(old.max_rel, new.max_rel),
            undecided=old.undecided + new.undecided,
        )

    # ── batches that were not answered ───────────────────────────────────────────────────────────

    def _stopped(self, expected: Trace, actual: Trace, items: int) -> None:
        ours, theirs = expected.stop, actual.stop
        if _agree(ours, theirs):
            self._refused += items
            return
        stop = theirs or ours
        if stop is None:
            return
        index = self._place(ours, theirs, expected)
        if ours is not None and theirs is not None:
            detail = f"{theirs.kind} with {theirs.why}; expected was {ours.kind} with {ours.why}"
        elif theirs is not None:
            detail = f"{theirs.kind}: {theirs.why}"
        else:
            detail = f"answered, where it should have been {stop.kind}: {stop.why}"
        self._note(
            Finding(
                index=index, step=self._name(index), tensor="", differs=stop.kind,
                detail=_one_line(detail), elements=items, differing=items,
            )
        )  # fmt: skip

    def _place(self, ours: Stop | None, theirs: Stop | None, expected: Trace) -> int:
        """The step at which one side stopped; the first checker if a refusal does not tell."""
        known = [stop.index for stop in (ours, theirs) if stop and stop.index is not None]
        if known:
            return min(known)
        checkers = [index for index, (_, made) in enumerate(expected.steps) if not made]
        if theirs is not None and theirs.kind == "refused" and checkers:
            return checkers[0]
        return len(self._steps)

    def _name(self, index: int) -> str:
        return self._steps[index] if index < len(self._steps) else ANSWER

    def _count_flips(self, expected: Tensors, actual: Tensors) -> None:
        ours, theirs = (labels_of(outputs, self._classes) for outputs in (expected, actual))
        if ours is None or theirs is None or ours.shape != theirs.shape:
            return
        self._flips = (self._flips or 0) + int(np.count_nonzero(ours != theirs))


# ── single tensors ───────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Gap:
    """How far two arrays lie apart; the fields are those of `Finding`."""

    differs: Kind | None = None
    detail: str = ""
    elements: int = 0
    differing: int = 0
    max_abs: float | None = None
    max_rel: float | None = None
    undecided: int = field(default=0)


def gap(expected: Array, actual: Array, tolerance: Tolerance) -> _Gap:
    """Compare two tensors."""
    size = max(expected.size, actual.size)
    ours, theirs = _kind(expected), _kind(actual)
    if ours != theirs:
        return _Gap("datatype", f"{theirs}, expected {ours}", size, size)
    if expected.shape != actual.shape:
        detail = f"shape {list(actual.shape)}, expected {list(expected.shape)}"
        return _Gap("shape", detail, size, size)
    if expected.dtype.kind in "fc":
        return _floats(expected, actual, tolerance)
    if expected.dtype.kind in "OSU":
        expected, actual = _as_bytes(expected), _as_bytes(actual)
    unequal = np.asarray(expected != actual, dtype=np.bool_)
    differing = int(np.count_nonzero(unequal))
    found = _Gap("values" if differing else None, "", expected.size, differing)
    if expected.dtype.kind in "biu" and expected.size:
        apart = np.abs(expected.astype(np.float64) - actual.astype(np.float64))
        found.max_abs, found.max_rel = _largest(apart, expected)
    return found


def labels_of(outputs: Tensors, classes: int) -> NDArray[np.int64] | None:
    """Each item's label: an output of integers [n], else the largest of scores [n, classes]."""
    whole = {
        name: array
        for name, array in outputs.items()
        if array.ndim == 1 and array.dtype.kind in "iu"
    }
    if whole:
        return whole.get("label", next(iter(whole.values()))).astype(np.int64)
    for array in outputs.values():
        if array.dtype.kind == "f" and array.ndim == 2 and array.shape[1] == classes > 1:
            return np.asarray(array.argmax(axis=1), dtype=np.int64)
    return None


def _floats(expected: Array, actual: Array, tolerance: Tolerance) -> _Gap:
    complex_ = expected.dtype.kind == "c"
    ours, theirs = (
        array.astype(np.complex128 if complex_ else np.float64) for array in (expected, actual)
    )
    nothing = np.isnan(ours) | np.isnan(theirs)
    both = np.isnan(ours) & np.isnan(theirs)
    finite = np.isfinite(ours) & np.isfinite(theirs)
    apart = np.zeros(ours.shape, dtype=np.float64)
    with np.errstate(over="ignore"):  # values at the end of the range are infinitely far apart
        apart[finite] = np.abs(ours[finite] - theirs[finite])
    allowed = np.full(ours.shape, tolerance.atol)
    allowed[finite] += tolerance.rtol * np.abs(ours[finite])
    # infinity agrees with the same infinity alone, and NaN is judged apart
    wrong = np.where(finite, ~(apart <= allowed), ours != theirs) & ~both
    differing = int(np.count_nonzero(wrong))
    found = _Gap("values" if differing else None, "", ours.size, differing)
    found.max_abs, found.max_rel = _largest(apart[finite], ours[finite])
    found.undecided = int(np.count_nonzero(both))
    one_sided = int(np.count_nonzero(nothing & ~both))
    infinite = int(np.count_nonzero(wrong & ~finite)) - one_sided
    parts = [f"{one_sided} NaN on one side only"] if one_sided else []
    parts += [f"{infinite} infinite on one side only"] if infinite else []
    found.detail = ", ".join(parts)
    return found


def _largest(apart: Array, expected: Array) -> tuple[float | None, float | None]:
    """Largest absolute and relative distance."""
    if not apart.size:
        return None, None
    size = np.abs(expected.astype(np.complex128 if expected.dtype.kind == "c" else np.float64))
    known = size > 0
    with np.errstate(over="ignore"):
        relative = float(np.max(apart[known] / size[known])) if known.any() else None
    return float(np.max(apart)), relative


def _kind(array: Array) -> str:
    """Element type, with all forms of text as one."""
    return "bytes" if array.dtype.kind in "OSU" else array.dtype.newbyteorder("=").name


def _as_bytes(array: Array) -> Array:
    flat = [each if isinstance(each, bytes) else str(each).encode() for each in array.ravel()]
    result = np.empty(len(flat), dtype=np.object_)
    result[:] = flat
    return result.reshape(array.shape)


def _agree(ours: Stop | None, theirs: Stop | None) -> bool:
    """Whether both sides gave up for the same reason, and at the same step as far as they say."""
    if ours is None or theirs is None or ours.reason != theirs.reason:
        return False
    return theirs.index is None or ours.index == theirs.index


def _larger(a: float | None, b: float | None) -> float | None:
    return max((value for value in (a, b) if value is not None), default=None)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
