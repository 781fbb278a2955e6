"""How many devices a rate needs.  Pure.

Replicas per device, cores and devices are whole numbers, so price and power are step functions of
the rate: a little more may need one device more.

The rate of one replica is taken from the cost model of a measured bundle and held below full load,
because the latency of a queue grows without bound near it.  It is an estimate: the scenario
"server" is what proves a rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from edge_agent.wire.manifest import CostModel
from optimizer.profiles import HardwareProfile

DEFAULT_UTILISATION: Final = 0.7


@dataclass(frozen=True)
class Fleet:
    """Devices of one profile that carry a rate together.

    Attributes:
        qps_per_replica: at the utilisation that was asked for, items one at a time.
        replicas_per_device: bounded by memory and by cores; 0 where one does not fit.
        devices: 0 where no number of them is enough.
        price_usd: of all devices; `None` where the profile has no price.
        power_w: of all devices; `None` where the profile has no figure.
        bound_by: what limits the replicas of a device: "memory" or "cores".
    """

    qps_per_replica: float
    replicas_per_device: int
    devices: int
    price_usd: float | None
    power_w: float | None
    bound_by: str


def plan(
    profile: HardwareProfile,
    cost: CostModel,
    memory_mib: float,
    qps: float,
    utilisation: float = DEFAULT_UTILISATION,
) -> Fleet:
    """Devices of `profile` that answer `qps` single items a second.

    Args:
        memory_mib: of one replica, as measured.
        utilisation: share of full load that a replica is planned for, in (0, 1).

    Raises:
        ValueError: `qps`, `memory_mib` or `utilisation` is out of its range.
    """
    if not (qps > 0 and memory_mib > 0 and 0 < utilisation < 1):
        raise ValueError("qps and memory must be positive, utilisation between 0 and 1")
    service_s = (cost.per_item_us + cost.fixed_us) / 1e6
    if service_s <= 0:
        raise ValueError("a cost model of no time tells nothing")
    rate = utilisation / service_s
    by_memory = int((profile.memory_mib.value if profile.memory_mib else 0) // memory_mib)
    cores = profile.cores.value if profile.cores else 1
    by_cores = max(1, cores // profile.model_threads)
    replicas = min(by_memory, by_cores)
    devices = math.ceil(qps / (rate * replicas)) if replicas else 0
    return Fleet(
        qps_per_replica=rate,
        replicas_per_device=replicas,
        devices=devices,
        price_usd=devices * profile.price_usd.value if profile.price_usd else None,
        power_w=devices * profile.power_w.value if profile.power_w else None,
        bound_by="memory" if by_memory <= by_cores else "cores",
    )
