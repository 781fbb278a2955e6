"""Judgements on a wave, with their evidence: pure functions of figures.

    failures                       `failures`   failed updates: a limit, and the old version's
    errors, rejects, corrections,
    drift, latency, memory         `serving`    figures against devices on the old version

"fail" needs proof of a rise that matters.  "insufficient" says that the figures decide nothing: for
`failures` that needs a person; the comparisons let a wave pass then unless `require_comparison` is
set.  A threshold that is no number fails the wave.

A version that equals the old one is stopped by the comparisons with a probability of at most
`GateSpec.false_alarm` over the whole rollout, however many waves, profiles and figures there are.
"""

from fleet.rollouts.gates.failures import FAILURES_GATE, WaveOutcomes, failure_gate
from fleet.rollouts.gates.serving import DRIFT_GATE, comparison_gates
from fleet.rollouts.gates.shares import CORRECTIONS_GATE, ERRORS_GATE, REJECTS_GATE
from fleet.rollouts.gates.sizes import LATENCY_GATE, MEMORY_GATE

PERSON_GATE = "person"

__all__ = [
    "CORRECTIONS_GATE",
    "DRIFT_GATE",
    "ERRORS_GATE",
    "FAILURES_GATE",
    "LATENCY_GATE",
    "MEMORY_GATE",
    "PERSON_GATE",
    "REJECTS_GATE",
    "WaveOutcomes",
    "comparison_gates",
    "failure_gate",
]
