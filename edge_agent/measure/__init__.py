"""Honest measurement: a load generator, the highest rate that holds, A against B, memory, a lock.

Owns how a figure is taken and when it may be believed.  It does not know budgets: whoever asks
compares.  Times of two machines, or of two runs apart, are never comparable; measure side by side.
"""

from __future__ import annotations

from edge_agent.measure import percentiles
from edge_agent.measure.attempt import Batches, Issue
from edge_agent.measure.comparison import Comparison, compare
from edge_agent.measure.cost import CostFit, fit_cost
from edge_agent.measure.errors import MeasureBusy, MeasureError, MemoryUnmeasured
from edge_agent.measure.load import measure
from edge_agent.measure.machine import machine_lock
from edge_agent.measure.network import (
    compare_pipelines,
    find_pipeline_qps,
    issue_of,
    measure_memory,
    measure_pipeline,
    provenance_of,
)
from edge_agent.measure.peak import QpsSearch, find_highest_qps
from edge_agent.measure.results import Measurement, MeasureSettings, Scenario, Verdict

__all__ = [
    "Batches",
    "Comparison",
    "CostFit",
    "Issue",
    "MeasureBusy",
    "MeasureError",
    "MeasureSettings",
    "Measurement",
    "MemoryUnmeasured",
    "QpsSearch",
    "Scenario",
    "Verdict",
    "compare",
    "compare_pipelines",
    "find_highest_qps",
    "find_pipeline_qps",
    "fit_cost",
    "issue_of",
    "machine_lock",
    "measure",
    "measure_memory",
    "measure_pipeline",
    "percentiles",
    "provenance_of",
]
