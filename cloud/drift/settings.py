"""What a drift check is made with."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DriftSettings(BaseModel):
    """Settings of one check.

    Attributes:
        window: newest uniform samples that a window holds at most.
        min_samples: fewer in the fleet's window are "insufficient".
        min_device_samples: devices with fewer are not judged by themselves.
        max_samples: newest samples of the fleet that are read at most.
        max_age_s: samples older than this are not looked at, in seconds.
        false_alarm: probability that a check of the whole fleet alarms without drift.
        device_false_discovery: expected share of false alarms among the devices that alarm.
        draws: windows that are drawn to calibrate a threshold.
        seed: of these draws.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: int = Field(default=128, ge=1)
    min_samples: int = Field(default=32, ge=1)
    min_device_samples: int = Field(default=64, ge=1)
    max_samples: int = Field(default=4096, ge=1)
    max_age_s: float = Field(default=7 * 86400.0, gt=0)
    false_alarm: float = Field(default=0.01, gt=0, le=0.5)
    device_false_discovery: float = Field(default=0.05, gt=0, le=0.5)
    draws: int = Field(default=2000, ge=200)
    seed: int = 0
