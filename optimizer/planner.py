"""Which hardware carries a rate, and how many devices of it.  Pure.

Replicas per device and devices are whole numbers, so price and power are step functions of the
rate: a little more may need one device more.

Rules:
    * A rate is held where its latency is: the percentile of the wait in the queue of a device
      (M/D/c, `optimizer.queueing`) and that of a request alone together keep it.  Without a latency
      a device is planned for `UNBOUND_UTILISATION`.
    * Requests are counted one at a time: batches, which carry more, are left as a reserve.
    * What cannot be planned or has no price is listed apart with the reason, never left out.

It is an estimate, and as good as its figures: the scenario "server" on the device proves a rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from optimizer.budget import Positive, whole_replicas
from optimizer.profiles import HardwareProfile
from optimizer.queueing import MAX_UTILISATION, highest_utilisation
from optimizer.rates import Replica

UNBOUND_UTILISATION: Final = 0.7
"""Share of full load where no latency is asked for: in M/D/1 1.2 service times of waiting."""

BALANCER_QPS: Final = 6000.0
"""Requests per second through one core of a balancer.

Source: assumption: it handles each request twice, and a bare HTTP protocol on one 2.5 GHz core
answers 12,914 small requests a second (docs/benchmarks/serving.md).
"""

Limit = Literal["memory", "accelerator memory", "accelerator", "cores"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Demand(_Model):
    """What is to be carried.

    Attributes:
        qps: single items a second, Poisson arrivals.
        latency_ms: bound at `percentile`, from arrival to answer.
        budget_usd: for all devices.
        power_w: of all devices.
        balancer_qps: requests a second that one balancer carries.
    """

    qps: Positive
    latency_ms: Positive | None = None
    percentile: Annotated[float, Field(ge=0.5, le=0.999)] = 0.99
    budget_usd: Positive | None = None
    power_w: Positive | None = None
    balancer_qps: Positive = BALANCER_QPS


class Step(_Model):
    """A number of devices, and what it carries and costs."""

    devices: int
    qps: float
    price_usd: float | None
    power_w: float | None


class Plan(_Model):
    """Devices of one profile that carry the rate together.

    Attributes:
        replicas: processes on each device.
        bound_by: what limits them.
        device_qps: that one device holds.
        rate_from: how `device_qps` was found.
        qps: that all devices hold together.
        headroom: share of `qps` that the demand leaves free.
        price_for: a device bought, or a year of renting it.
        over: limits of the demand that are exceeded: "price", "power".
        unknown: limits that cannot be judged, because the profile has no such figure.
        affordable: the most devices within the limits, fewer than `devices` where `over` names one;
            `None` without limits.
        steps: one device less (where there is one), as planned, one and two more.
    """

    profile: str
    title: str
    replica: Replica
    replicas: int
    bound_by: Limit
    device_qps: float
    rate_from: str
    devices: int
    qps: float
    headroom: float
    price_usd: float | None
    price_for: Literal["device", "year"]
    power_w: float | None
    over: tuple[str, ...]
    unknown: tuple[str, ...]
    affordable: Step | None
    steps: tuple[Step, ...]

    @property
    def within(self) -> bool:
        """Whether every limit that was given is surely kept."""
        return not self.over and not self.unknown


class Unplanned(_Model):
    """A profile for which there is no plan, and why."""

    profile: str
    reason: str


class Planning(_Model):
    """All plans.

    Attributes:
        ranked: with a price; those within the limits first, then by price, power and headroom.
        unpriced: without a price, by the number of devices.
        unplanned: with the reason.
    """

    demand: Demand
    ranked: tuple[Plan, ...]
    unpriced: tuple[Plan, ...]
    unplanned: tuple[Unplanned, ...]

    def balancers(self, plan: Plan) -> int:
        """Balancers in front of the devices of `plan`; none for a single device."""
        if plan.devices == 1:
            return 0
        return math.ceil(self.demand.qps / self.demand.balancer_qps)


class _NoPlan(Exception):
    """Why a profile cannot carry the rate, whatever the number of devices."""


def plan(
    profiles: Sequence[HardwareProfile], replicas: Mapping[str, Replica], demand: Demand
) -> Planning:
    """Rank `profiles` by what it costs to carry `demand`.

    Args:
        replicas: what one process does, by the name of the profile.
    """
    plans: list[Plan] = []
    unplanned: list[Unplanned] = []
    for profile in profiles:
        replica = replicas.get(profile.name)
        try:
            if replica is None:
                raise _NoPlan("no figures of the model on it")
            plans.append(_plan(profile, replica, demand))
        except _NoPlan as why:
            unplanned.append(Unplanned(profile=profile.name, reason=str(why)))
    priced = [plan for plan in plans if plan.price_usd is not None]
    return Planning(
        demand=demand,
        ranked=tuple(sorted(priced, key=_rank)),
        unpriced=tuple(
            sorted(
                (plan for plan in plans if plan.price_usd is None),
                key=lambda plan: (bool(plan.over), plan.devices, plan.profile),
            )
        ),
        unplanned=tuple(unplanned),
    )


def _plan(profile: HardwareProfile, replica: Replica, demand: Demand) -> Plan:
    count, bound_by = _fitting(profile, replica)
    servers = 1 if _accelerated(profile, replica) else count * replica.instances
    rate, how = _device_rate(replica, count, servers, demand)
    devices = max(1, math.ceil(demand.qps / rate * (1 - 1e-12)))

    def step(number: int) -> Step:
        price, power = profile.price_usd, profile.power_w
        return Step(
            devices=number,
            qps=number * rate,
            price_usd=number * price.value if price else None,
            power_w=number * power.value if power else None,
        )

    chosen = step(devices)
    most = _most(profile, demand)
    return Plan(
        profile=profile.name,
        title=profile.title,
        replica=replica,
        replicas=count,
        bound_by=bound_by,
        device_qps=rate,
        rate_from=how,
        devices=devices,
        qps=chosen.qps,
        headroom=max(0.0, 1 - demand.qps / chosen.qps),
        price_usd=chosen.price_usd,
        price_for=profile.price_for,
        power_w=chosen.power_w,
        over=_over(chosen, demand),
        unknown=_unknown(chosen, demand),
        affordable=None if most is None else step(most),
        steps=tuple(step(n) for n in range(max(1, devices - 1), devices + 3)),
    )


def _fitting(profile: HardwareProfile, replica: Replica) -> tuple[int, Limit]:
    """Processes that one device holds, at least one, and what limits them."""
    if replica.memory_mib is None:
        raise _NoPlan("the memory of a replica was not measured")
    if profile.usable_mib is None:
        raise _NoPlan("the profile says nothing of its memory")
    limits: dict[Limit, int] = {"memory": whole_replicas(profile.usable_mib, replica.memory_mib)}
    if _accelerated(profile, replica):
        # One network computes at a time, and a second replica would only wait for the first.
        limits["accelerator"] = 1
        own = profile.accelerator.memory_mib if profile.accelerator else None
        if own is not None:
            limits["accelerator memory"] = whole_replicas(own.value, replica.memory_mib)
    else:
        cores = profile.cores.value if profile.cores else 1
        taken = (replica.threads or profile.model_threads) * replica.instances
        limits["cores"] = max(1, cores // taken)
    bound_by = min(limits, key=lambda name: limits[name])
    if not limits[bound_by]:
        raise _NoPlan(f"one replica of {replica.memory_mib:.4g} MiB does not fit in its {bound_by}")
    return limits[bound_by], bound_by


def _device_rate(replica: Replica, count: int, servers: int, demand: Demand) -> tuple[float, str]:
    """Requests per second that one device holds, and how that is known."""
    full = servers * 1e3 / replica.service_ms
    if demand.latency_ms is None:
        return UNBOUND_UTILISATION * full, f"{UNBOUND_UTILISATION:.0%} of full load"
    if replica.held_at(demand.latency_ms, demand.percentile) and replica.held_qps:
        return count * replica.held_qps, "the highest rate that was measured"
    alone_ms = max(replica.service_ms, replica.tail_ms or 0.0)
    wait = (demand.latency_ms - alone_ms) / replica.service_ms
    # rounded down to a tenth, so that equal questions are asked once
    utilisation = highest_utilisation(servers, math.floor(wait * 10) / 10, demand.percentile)
    percent = f"p{demand.percentile * 100:g}"
    if utilisation <= 0:
        raise _NoPlan(
            f"one request alone takes {alone_ms:.3g} ms, which leaves nothing of "
            f"{demand.latency_ms:g} ms to wait at {percent}"
        )
    top = " at most" if utilisation >= MAX_UTILISATION else ""
    return utilisation * full, f"M/D/{servers} at {percent}: {utilisation:.0%}{top} of full load"


def _accelerated(profile: HardwareProfile, replica: Replica) -> bool:
    return profile.accelerator is not None and replica.runtime in profile.accelerator.runtimes


def _over(step: Step, demand: Demand) -> tuple[str, ...]:
    over = []
    if demand.budget_usd is not None and step.price_usd and step.price_usd > demand.budget_usd:
        over.append("price")
    if demand.power_w is not None and step.power_w and step.power_w > demand.power_w:
        over.append("power")
    return tuple(over)


def _unknown(step: Step, demand: Demand) -> tuple[str, ...]:
    unknown = []
    if demand.budget_usd is not None and step.price_usd is None:
        unknown.append("price")
    if demand.power_w is not None and step.power_w is None:
        unknown.append("power")
    return tuple(unknown)


def _most(profile: HardwareProfile, demand: Demand) -> int | None:
    """The most devices within the limits of price and power."""
    counts = []
    if demand.budget_usd is not None and profile.price_usd:
        counts.append(int(demand.budget_usd // profile.price_usd.value))
    if demand.power_w is not None and profile.power_w:
        counts.append(int(demand.power_w // profile.power_w.value))
    return min(counts, default=None)


def _rank(plan: Plan) -> tuple[bool, float, float, float, str]:
    power = math.inf if plan.power_w is None else plan.power_w
    return (not plan.within, plan.price_usd or math.inf, power, -plan.headroom, plan.profile)
