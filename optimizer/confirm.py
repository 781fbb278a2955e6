"""Never slower: what is about to be chosen is held against fp32, both timed in turns in one run.

Figures of runs apart differ by more than some optimisations gain, so the ranking alone is no proof.
Variants in fp32 are what a candidate must not be slower than:

    references    the member that losses are counted from, on ONNX Runtime: what one starts with;
                  and the fastest variant in fp32 by whatever is known, however briefly it was timed
    the rival     the fastest variant in fp32 among those that may be chosen

Rules:
    * A candidate that is not surely faster gives way to the next one, where the variant in fp32 may
      be chosen itself.  Where that one may not, the candidate stays, a note says so, and the
      variant is named to the caller: if it was only not measured in full, it should be.
    * fp32 itself can win.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edge_agent.measure import Comparison, MeasureError
from edge_agent.pipeline import PipelineError
from edge_agent.runtime import SessionError
from optimizer.task import Candidate

log = logging.getLogger("skerry.optimizer")

MOST_TRIES: Final = 4
"""Candidates that may give way before the rival is taken."""


@dataclass(frozen=True)
class Baseline:
    """A bundle in fp32 that candidates are compared with."""

    name: str
    directory: Path


Compare = Callable[[Path, Candidate], Comparison | None]
"""Times the bundle in a directory and a candidate; `None` where neither can be timed."""


@dataclass(frozen=True)
class Confirmed:
    """What came of it.

    Attributes:
        chosen: name of the candidate; empty where there is none.
        changed: those that were compared, by name, with comparison and notes.
        unbeaten: baselines that may not be chosen, and than which it is not surely faster.
    """

    chosen: str = ""
    changed: dict[str, Candidate] = field(default_factory=dict)
    unbeaten: tuple[str, ...] = ()


def confirm(
    ranked: Sequence[Candidate],
    plain: Collection[str],
    references: Sequence[Baseline],
    compare: Compare,
) -> Confirmed:
    """Which of `ranked` is chosen.

    Args:
        ranked: what may be chosen, the best first.
        plain: names of those that are in fp32.
    """
    changed: dict[str, Candidate] = {}
    names = {candidate.name for candidate in ranked}
    rival = next((candidate for candidate in ranked if candidate.name in plain), None)
    for tries, candidate in enumerate(ranked):
        if tries >= MOST_TRIES and rival is not None and candidate.name not in plain:
            continue
        baselines = list(references)
        if rival is not None and rival.bundle_dir is not None:
            baselines.append(Baseline(rival.name, rival.bundle_dir))
        gives_way = False
        unbeaten: list[str] = []
        for baseline in {each.name: each for each in baselines}.values():
            if baseline.name == candidate.name:
                continue
            eligible = baseline.name in names
            compared, faster = _compared(
                changed.get(candidate.name, candidate), baseline, eligible, compare
            )
            changed[candidate.name] = compared
            if not faster and eligible:
                gives_way = True
                break
            if not faster:
                unbeaten.append(baseline.name)
        if not gives_way:
            return Confirmed(candidate.name, changed, tuple(unbeaten))
    # Every one gave way, also what is in fp32: noise, then, and the ranking is as good as anything.
    return Confirmed((rival or ranked[0]).name, changed) if ranked else Confirmed()


def _compared(
    candidate: Candidate, baseline: Baseline, eligible: bool, compare: Compare
) -> tuple[Candidate, bool]:
    """The candidate with what was found, and whether it is surely faster than `baseline`, or
    cannot be compared."""
    try:
        found = compare(baseline.directory, candidate)
    except (PipelineError, SessionError, MeasureError) as error:
        return _noted(candidate, f"could not be compared with {baseline.name}: {error}"), True
    if found is None:
        return candidate, True
    if candidate.comparison is None:
        candidate = candidate.model_copy(update={"comparison": found})
    figures = (
        f"{found.speedup:.2f}× as fast as {baseline.name}, {found.low:.2f} to {found.high:.2f}"
    )
    log.info("candidate.compared variant=%s %s", candidate.name, figures)
    if found.low >= 1:
        return candidate, True
    if not eligible:
        return _noted(candidate, f"{figures}: not surely faster, but that may not be chosen"), False
    return _noted(candidate, f"{figures}: not surely faster, so it gave way"), False


def _noted(candidate: Candidate, note: str) -> Candidate:
    return candidate.model_copy(update={"notes": (*candidate.notes, note)})
