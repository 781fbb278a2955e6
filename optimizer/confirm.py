"""Never slower: what is about to be chosen is held against fp32, both timed in turns in one run.

Figures of runs apart differ by more than some optimisations gain, so the ranking alone is no proof.
Two variants in fp32 are what a candidate must not be slower than:

    the reference    the member that losses are counted from, on ONNX Runtime: what one starts with
    the rival        the fastest variant in fp32 among those that may be chosen

Rules:
    * A candidate that is not surely faster gives way to the next one, where the variant in fp32 may
      be chosen itself.  Where that one misses the budget, the candidate stays and a note says so.
    * fp32 itself can win.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
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


def confirm(
    ranked: Sequence[Candidate],
    plain: Collection[str],
    reference: Baseline | None,
    compare: Compare,
) -> tuple[str, dict[str, Candidate]]:
    """Which of `ranked` is chosen.

    Args:
        ranked: what may be chosen, the best first.
        plain: names of those that are in fp32.

    Returns:
        The name of the chosen one, empty where there is none; and by name those candidates that
        were compared, with comparison and notes.
    """
    changed: dict[str, Candidate] = {}
    names = {candidate.name for candidate in ranked}
    rival = next((candidate for candidate in ranked if candidate.name in plain), None)
    for tries, candidate in enumerate(ranked):
        if tries >= MOST_TRIES and rival is not None and candidate.name not in plain:
            continue
        baselines = [] if reference is None else [reference]
        if rival is not None and rival.bundle_dir is not None:
            baselines.append(Baseline(rival.name, rival.bundle_dir))
        gives_way = False
        for baseline in {each.name: each for each in baselines}.values():
            if baseline.name == candidate.name:
                continue
            compared, holds = _compared(
                changed.get(candidate.name, candidate), baseline, baseline.name in names, compare
            )
            changed[candidate.name] = compared
            if not holds:
                gives_way = True
                break
        if not gives_way:
            return candidate.name, changed
    # Every one gave way, also what is in fp32: noise, then, and the ranking is as good as anything.
    return (rival or ranked[0]).name if ranked else "", changed


def _compared(
    candidate: Candidate, baseline: Baseline, eligible: bool, compare: Compare
) -> tuple[Candidate, bool]:
    """The candidate with what was found, and whether it may stand before `baseline`."""
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
        return _noted(candidate, f"{figures}: not surely faster, but that may not be chosen"), True
    return _noted(candidate, f"{figures}: not surely faster, so it gave way"), False


def _noted(candidate: Candidate, note: str) -> Candidate:
    return candidate.model_copy(update={"notes": (*candidate.notes, note)})
