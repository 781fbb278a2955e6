"""Errors of measuring on devices; each is one line for a person.

UserError
└── BadSelection     "device:ID" or "group:NAME" is wrong, or means no device
Conflict
└── CannotMeasure    a device is offline, no lab device, busy, or of another profile
MeasureError         of the measure room: the search goes on with the next candidate
├── LabFailed        every device refused, failed or did not answer in time
└── LabUnreachable   the control plane does not answer
"""

from __future__ import annotations

from cloud.errors import Conflict, UserError
from edge_agent.measure import MeasureError


class BadSelection(UserError):
    """What was given after --on is wrong, or means no device."""


class CannotMeasure(Conflict):
    """The device cannot measure this now."""


class LabFailed(MeasureError):
    """No device gave a result."""


class LabUnreachable(MeasureError):
    """The control plane does not answer."""
