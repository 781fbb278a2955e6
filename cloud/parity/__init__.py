"""Parity: whether one model version answers the same in the cloud, on a device and in any batch.

Owns the comparison, step by step, and the way to both sides: the released bundle opened here as the
cloud opens it to judge it, and a device asked over the protocol that it serves.  The first step
that differs is named, because what comes after it differs on its account.

    compare    traces → findings: pure
    traces     what a pipeline made of one batch
    protocol   a batch and its trace as bytes of the Open Inference Protocol
    device     the other side
    release    which bundle was released, unpacked
    inputs     what both sides are fed
    check      every batch size, and the device
    examine    from a model's name to the report

It changes nothing here.  To a device its questions are requests like any other.
"""

from __future__ import annotations

from cloud.parity.check import DEFAULT_BATCHES, Checked, check
from cloud.parity.compare import Comparison, Finding, Tolerance, Verdict, compare
from cloud.parity.device import Device, DeviceAddress
from cloud.parity.errors import (
    CannotOpen,
    DeviceAnswer,
    DeviceUnreachable,
    InputsDoNotFit,
    NoRelease,
    OtherVersion,
    ParityError,
)
from cloud.parity.examine import Question, Report, examine
from cloud.parity.traces import Stop, Trace, run_here

__all__ = [
    "DEFAULT_BATCHES",
    "CannotOpen",
    "Checked",
    "Comparison",
    "Device",
    "DeviceAddress",
    "DeviceAnswer",
    "DeviceUnreachable",
    "Finding",
    "InputsDoNotFit",
    "NoRelease",
    "OtherVersion",
    "ParityError",
    "Question",
    "Report",
    "Stop",
    "Tolerance",
    "Trace",
    "Verdict",
    "check",
    "compare",
    "examine",
    "run_here",
]
