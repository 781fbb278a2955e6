"""Gates: statistics that say pass, fail or insufficient about a candidate.

Pure: predictions and labels go in, `GateResult`s come out; the registry keeps them.  It knows no
models, datasets or files.
"""

from __future__ import annotations

from cloud.gates.judge import GateSpec, Predictions, UnusablePredictions, judge_candidate
from cloud.gates.results import GateResult, Verdict, overall
from cloud.gates.statistics import Metric, holm, paired_bootstrap, wilson

__all__ = [
    "GateResult",
    "GateSpec",
    "Metric",
    "Predictions",
    "UnusablePredictions",
    "Verdict",
    "holm",
    "judge_candidate",
    "overall",
    "paired_bootstrap",
    "wilson",
]
