"""Errors of the simulator.

SimulationError          the simulation cannot be run (user)
├── TooManyDevices       more connections than this process may open
└── ForeignIdentities    a directory of identities belongs to another control plane, or is too old
"""

from __future__ import annotations


class SimulationError(Exception):
    """The simulation cannot be run; one line for a person."""


class TooManyDevices(SimulationError):
    """More connections than this process may open."""


class ForeignIdentities(SimulationError):
    """The identities in a directory are of no use here."""
