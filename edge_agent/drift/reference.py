"""The reference of a version: signals of the data that it was judged by, shipped in its bundle.

An `.npz` with the raw `signals` (a sample of at most 2,000 rows, float64), which thresholds are
calibrated on, and the sums `count`, `sum`, `outer` over all rows, which windows are compared with.
`Summary.load` reads the same file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.drift.errors import UnreadableSummary
from edge_agent.drift.signals import SIGNALS
from edge_agent.drift.summary import Summary
from edge_agent.runtime.npz import read_npz

MAX_REFERENCE_ROWS: Final = 2000


@dataclass(frozen=True, slots=True)
class Reference:
    """`signals` is float64 [m ≤ 2000, 12]; `summary` covers all rows that were given."""

    signals: NDArray[np.float64]
    summary: Summary


def write_reference(path: Path, signals: NDArray[np.float64]) -> None:
    """Store signals [n, 12]; the rows that are kept spread evenly over the given ones."""
    rows = signals[np.isfinite(signals).all(axis=1)]
    summary = Summary()
    summary.add(rows)
    kept = rows
    if len(rows) > MAX_REFERENCE_ROWS:
        kept = rows[np.linspace(0, len(rows) - 1, MAX_REFERENCE_ROWS).astype(np.int64)]
    with path.open("wb") as file:
        np.savez(
            file,
            signals=kept,
            count=np.int64(summary.count),
            sum=summary.sum,
            outer=summary.outer,
        )


def read_reference(path: Path) -> Reference:
    """Read what `write_reference` wrote.

    Raises:
        UnreadableSummary: missing, damaged, or of another shape.
    """
    summary = Summary.load(path)
    try:
        rows = read_npz(path).get("signals", np.empty(0)).astype(np.float64)
    except ValueError as error:
        raise UnreadableSummary(str(error)) from error
    if rows.ndim != 2 or rows.shape[1] != SIGNALS or not np.isfinite(rows).all():
        raise UnreadableSummary(f"{path.name}: signals of shape {rows.shape}")
    return Reference(rows, summary)
