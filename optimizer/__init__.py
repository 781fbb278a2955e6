"""The optimizer: from trained networks to the variants a hardware profile should run.

Owns hardware profiles, budgets, model families, export, recipes, evaluation, the search over them
and the report.  A library: no database, no network, no cloud.

Rules:
    * What is evaluated and timed is the bundle that will be served, through `edge_agent.pipeline`.
    * A budget is judged bound by bound and fails closed; no bound is ignored.
    * Figures of a profile carry their source.  Precision is what the runtime reports.
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
