from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fleet.rollouts.events import GateDecided
from fleet.rollouts.gates import comparison_gates
from fleet.rollouts.model import Comparison, DeviceFigures, GateSpec, Serving, WaveMetrics

Change = Callable[[dict[str, float]], None]


def side(
    devices: int, seed: int, change: Change | None = None, profile: str = "pi", **fixed: float
) -> WaveMetrics:
    """Devices that differ from each other by a factor, and from hour to hour by 10 %."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(devices):
        own_us = 2000 * float(rng.lognormal(0, 0.5))
        figures = {
            "requests": 400,
            "errors": int(rng.binomial(400, 0.002)),
            "p99_us": own_us * float(rng.lognormal(0, 0.1)),
            "rss_mib": 80 * float(rng.lognormal(0, 0.05)),
        }
        before = {**figures, "p99_us": own_us * float(rng.lognormal(0, 0.1))}
        if change is not None:
            change(figures)
        made.append(
            DeviceFigures(
                device=f"{profile}-{seed}-{index}",
                profile=profile,
                now=Serving.model_validate(figures | fixed),
                before=Serving.model_validate(before),
                drift_p=float(rng.random()),
            )
        )
    return WaveMetrics(devices=tuple(made))


def verdicts(decisions: list[GateDecided]) -> dict[str, str]:
    return {decision.gate: decision.verdict for decision in decisions}


def judge(
    treated: WaveMetrics, control: WaveMetrics, spec: GateSpec | None = None
) -> list[GateDecided]:
    return comparison_gates(0, Comparison(treated=treated, control=control), spec or GateSpec())


def scale(name: str, factor: float) -> Change:
    def change(figures: dict[str, float]) -> None:
        figures[name] *= factor

    return change


def add(name: str, count: int) -> Change:
    def change(figures: dict[str, float]) -> None:
        figures[name] = figures.get(name, 0) + count

    return change


ALL_PASS = dict.fromkeys(("errors", "rejects", "corrections", "latency", "memory", "drift"), "pass")


def test_equal_versions_pass_every_gate() -> None:
    assert verdicts(judge(side(40, 1), side(200, 2))) == ALL_PASS


@pytest.mark.parametrize(
    ("gate", "change"),
    [
        ("latency", scale("p99_us", 1.3)),
        ("memory", scale("rss_mib", 1.5)),
        ("errors", add("errors", 20)),
        ("rejects", add("rejects", 30)),
        ("corrections", add("corrections", 30)),
    ],
)
def test_what_is_worse_fails_its_gate_and_no_other(gate: str, change: Change) -> None:
    found = judge(side(40, 3, change), side(200, 4))
    assert verdicts(found) == ALL_PASS | {gate: "fail"}


def test_difference_that_does_not_matter_passes() -> None:
    found = judge(side(800, 5, scale("p99_us", 1.08)), side(800, 6))
    latency = next(each for each in found if each.gate == "latency")
    assert latency.verdict == "pass"
    assert float(latency.evidence["pi: p_value"] or 0) < 1e-6


def test_one_broken_device_neither_sinks_a_version_nor_saves_one() -> None:
    def broken(figures: dict[str, float]) -> None:
        figures |= {"requests": 1_000_000, "errors": 1_000_000, "p99_us": 1e9, "rss_mib": 1e6}

    sick = side(1, 7, broken).devices
    good = WaveMetrics(devices=side(20, 8).devices + sick)
    assert verdicts(judge(good, side(100, 9))) == ALL_PASS
    slow = WaveMetrics(devices=side(40, 10, scale("p99_us", 1.4)).devices)
    control = WaveMetrics(devices=side(100, 11).devices + sick)
    assert verdicts(judge(slow, control))["latency"] == "fail"
    failing = WaveMetrics(devices=side(40, 12, add("errors", 20)).devices)
    assert verdicts(judge(failing, control))["errors"] == "fail"


def test_every_tenth_device_that_breaks_is_found() -> None:
    sick = side(10, 13, add("errors", 390)).devices
    treated = WaveMetrics(devices=side(90, 14).devices + sick)
    assert verdicts(judge(treated, side(300, 15)))["errors"] == "fail"


def test_trouble_on_one_profile_is_not_thinned_by_the_others() -> None:
    treated = WaveMetrics(
        devices=side(400, 16).devices + side(12, 17, add("errors", 20), profile="gpu").devices
    )
    control = WaveMetrics(devices=side(400, 18).devices + side(40, 19, profile="gpu").devices)
    errors = judge(treated, control)[0]
    assert errors.verdict == "fail"
    assert errors.reason.startswith("gpu: ") or ", gpu: " in errors.reason


def test_profiles_are_never_compared_with_each_other() -> None:
    slow_kind = scale("p99_us", 10)
    treated = WaveMetrics(
        devices=side(50, 20, slow_kind, profile="mcu").devices + side(10, 21).devices
    )
    control = WaveMetrics(
        devices=side(10, 22, slow_kind, profile="mcu").devices + side(100, 23).devices
    )
    assert verdicts(judge(treated, control)) == ALL_PASS
    assert set(verdicts(judge(side(50, 24, profile="mcu"), side(50, 25))).values()) == {
        "insufficient"
    }


def test_devices_that_drift_on_the_new_version_alone_fail_the_wave() -> None:
    drifting = tuple(each.model_copy(update={"drift_p": 0.001}) for each in side(15, 26).devices)
    treated = WaveMetrics(devices=side(25, 27).devices + drifting)
    assert verdicts(judge(treated, side(100, 28)))["drift"] == "fail"


def test_thin_figures_decide_nothing() -> None:
    found = judge(side(4, 29), side(100, 30))
    assert set(verdicts(found).values()) == {"insufficient"}
    assert "4 devices of the wave and 100 of the control group" in found[0].reason
    few = judge(side(10, 31, requests=5, errors=0), side(10, 32))
    assert few[0].verdict == "insufficient"
    assert "50 requests in the wave, 4000 in the control group; 200 are needed" in few[0].reason


@pytest.mark.parametrize("name", ["max_p99_ratio", "max_error_increase", "false_alarm"])
def test_unreadable_threshold_fails_the_wave(name: str) -> None:
    broken = GateSpec().model_copy(update={name: float("nan")})
    assert set(verdicts(judge(side(10, 33), side(10, 34), broken)).values()) == {"fail"}


def test_evidence_says_what_was_compared() -> None:
    latency = judge(side(40, 35, scale("p99_us", 1.3)), side(200, 36))[3]
    assert latency.gate == "latency"
    assert latency.evidence["devices"] == 40
    assert latency.evidence["control_devices"] == 200
    assert float(latency.evidence["pi: ratio"] or 0) == pytest.approx(1.3, abs=0.08)
    assert latency.evidence["level"] == 0.0025
