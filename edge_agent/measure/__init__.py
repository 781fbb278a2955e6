"""Honest measurement: a load generator, percentiles with confidence, memory, the machine's lock.

Owns how a figure is taken and when it may be believed.  It does not know budgets: whoever asks
compares.  Times of two machines, or of two runs apart, are never comparable; measure side by side.
"""

from __future__ import annotations

from edge_agent.measure import percentiles
from edge_agent.measure.cost import CostFit, fit_cost
from edge_agent.measure.errors import MeasureBusy, MeasureError, MemoryUnmeasured
from edge_agent.measure.load import Measurement, MeasureSettings, Scenario, Verdict, measure
from edge_agent.measure.machine import machine_lock
from edge_agent.measure.network import measure_memory, measure_pipeline

__all__ = [
    "CostFit",
    "MeasureBusy",
    "MeasureError",
    "MeasureSettings",
    "Measurement",
    "MemoryUnmeasured",
    "Scenario",
    "Verdict",
    "fit_cost",
    "machine_lock",
    "measure",
    "measure_memory",
    "measure_pipeline",
    "percentiles",
]
