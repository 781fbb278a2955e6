"""Drift of the field's inputs, judged in the cloud.

Owns `drift_reports`.  Drift is not harm: a report says that inputs look unlike those that the
version was judged by, and `cloud.retrain` decides what that is worth.  A verdict does not depend on
how much has arrived: the threshold is calibrated at the actual number of samples.
"""

from __future__ import annotations

from cloud.drift.check import judge, newest_fleet_report, record
from cloud.drift.settings import DriftSettings

__all__ = ["DriftSettings", "judge", "newest_fleet_report", "record"]
