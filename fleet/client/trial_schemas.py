"""What the API says about trials: versions that are tried beside the ones that serve."""

from __future__ import annotations

from pydantic import Field

from fleet.client.schemas import ApiModel, ApiRequest, WaveIn


class ShareIn(ApiRequest):
    """Another share of the requests, 0 to 1."""

    share: float = Field(ge=0, le=1, allow_inf_nan=False)


class PromoteIn(ApiRequest):
    """How the version takes the place of the one that serves, on the devices that try it."""

    waves: list[WaveIn] = Field(default_factory=lambda: [WaveIn(percent=100)], min_length=1)


class TrialSide(ApiModel):
    """Figures of one side, on the devices of the trial and since it had its first requests.

    Attributes:
        latency_p99_us: mean of the reports' p99, weighted by their requests; None without any.
    """

    requests: int = 0
    errors: int = 0
    rejects: int = 0
    corrections: int = 0
    latency_p99_us: float | None = None


class TrialDifferences(ApiModel):
    """How a shadow's answers differed; as `edge_agent.wire.messages.ComparisonReport`, summed."""

    compared: int = 0
    disagreed: int = 0
    errors: int = 0
    shed: int = 0
    abs_max: float = 0.0
    abs_mean: float = 0.0


class TrialOut(ApiModel):
    """A trial: the version that serves beside the one that is tried, on the same devices.

    Attributes:
        devices: that try it now.
    """

    rollout: str
    model: str
    version: int
    state: str
    mode: str
    share: float
    devices: int
    champion: TrialSide
    challenger: TrialSide
    differences: TrialDifferences
