"""What holds for the gates whatever the figures are."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.rollouts.events import GateDecided
from fleet.rollouts.gates import WaveOutcomes, comparison_gates, failure_gate
from fleet.rollouts.model import (
    Comparison,
    DeviceFigures,
    GateSpec,
    Outcomes,
    Serving,
    WaveMetrics,
)

PROFILES = ("pi", "gpu")
THRESHOLDS = (
    "max_failure_rate", "max_failure_increase", "false_alarm", "max_error_increase",
    "max_reject_increase", "max_correction_increase", "max_p99_ratio", "max_memory_ratio",
    "drift_level",
)  # fmt: skip

histories = st.fixed_dictionaries(
    {},
    optional={
        profile: st.integers(1, 3000).flatmap(
            lambda n: st.builds(Outcomes, responders=st.just(n), failures=st.integers(0, n // 5))
        )
        for profile in PROFILES
    },
)
specs = st.builds(
    GateSpec,
    min_responders=st.integers(1, 20),
    max_failure_rate=st.floats(0.001, 0.9),
    max_failure_increase=st.floats(0, 0.5),
    false_alarm=st.floats(1e-4, 0.2),
)


@st.composite
def outcomes(draw: st.DrawFn) -> dict[str, WaveOutcomes]:
    found = {}
    for profile in PROFILES:
        responders = draw(st.integers(0, 200))
        found[profile] = WaveOutcomes(
            responders=responders,
            failures=draw(st.integers(0, responders)),
            under_way=draw(st.integers(0, 100)),
            unreachable=draw(st.integers(0, 100)),
        )
    return found


def judge(
    found: dict[str, WaveOutcomes],
    history: dict[str, Outcomes],
    spec: GateSpec,
    wave: int,
    *,
    final: bool = True,
) -> GateDecided | None:
    return failure_gate(wave, outcomes=found, history=history, final=final, spec=spec)


@settings(deadline=None)
@given(outcomes(), histories, specs, st.integers(0, 5), st.sampled_from(PROFILES))
def test_another_failure_never_turns_a_failed_wave_into_another(
    found: dict[str, WaveOutcomes],
    history: dict[str, Outcomes],
    spec: GateSpec,
    wave: int,
    profile: str,
) -> None:
    before = judge(found, history, spec, wave)
    mine = found[profile]
    assert before is not None
    if before.verdict != "fail" or mine.failures == mine.responders:
        return
    worse = WaveOutcomes(mine.responders, mine.failures + 1, mine.under_way, mine.unreachable)
    after = judge({**found, profile: worse}, history, spec, wave)
    assert after is not None
    assert after.verdict == "fail"


@settings(deadline=None)
@given(outcomes(), histories, specs, st.integers(0, 5), st.data())
def test_what_fails_early_fails_in_the_end_whatever_comes(
    found: dict[str, WaveOutcomes],
    history: dict[str, Outcomes],
    spec: GateSpec,
    wave: int,
    data: st.DataObject,
) -> None:
    early = judge(found, history, spec, wave, final=False)
    if early is None:
        return
    assert early.verdict == "fail"
    ended = {}
    for profile, mine in found.items():
        succeed = data.draw(st.integers(0, mine.under_way))
        fail = data.draw(st.integers(0, mine.under_way - succeed))
        ended[profile] = WaveOutcomes(mine.responders + succeed + fail, mine.failures + fail)
    late = judge(ended, history, spec, wave)
    assert late is not None
    assert late.verdict == "fail"


@settings(deadline=None)
@given(outcomes(), histories, specs, st.booleans(), st.integers(0, 10_000))
def test_unreachable_devices_change_no_verdict(
    found: dict[str, WaveOutcomes],
    history: dict[str, Outcomes],
    spec: GateSpec,
    final: bool,
    unreachable: int,
) -> None:
    more = {
        profile: WaveOutcomes(mine.responders, mine.failures, mine.under_way, unreachable)
        for profile, mine in found.items()
    }
    before = judge(found, history, spec, 0, final=final)
    after = judge(more, history, spec, 0, final=final)
    assert (before and before.verdict) == (after and after.verdict)


@st.composite
def sides(draw: st.DrawFn) -> WaveMetrics:
    devices = []
    for index in range(draw(st.integers(0, 14))):
        requests = draw(st.integers(0, 500))
        devices.append(
            DeviceFigures(
                device=f"d{index}",
                profile=draw(st.sampled_from(PROFILES)),
                now=Serving(
                    requests=requests,
                    errors=draw(st.integers(0, requests)),
                    rejects=draw(st.integers(0, requests)),
                    corrections=draw(st.integers(0, 2 * requests)),
                    p99_us=draw(st.none() | st.floats(1e-3, 1e12)),
                    rss_mib=draw(st.none() | st.floats(1e-3, 1e12)),
                ),
                before=draw(st.none() | st.just(Serving(requests=300, errors=1, p99_us=900.0))),
                drift_p=draw(st.none() | st.floats(0, 1)),
            )
        )
    return WaveMetrics(devices=tuple(devices))


def _changed(side: WaveMetrics, **figures: object) -> WaveMetrics:
    """Every device with these figures, past all checks of the model."""
    return WaveMetrics.model_construct(
        devices=tuple(
            each.model_copy(update={"now": each.now.model_copy(update=figures)})
            for each in side.devices
        )
    )


@settings(deadline=None, max_examples=60)
@given(sides(), sides(), st.integers(0, 4))
def test_more_errors_never_save_a_wave_and_every_figure_gets_a_verdict(
    treated: WaveMetrics, control: WaveMetrics, wave: int
) -> None:
    before = comparison_gates(wave, Comparison(treated=treated, control=control), GateSpec())
    assert [each.gate for each in before] == [
        "errors", "rejects", "corrections", "latency", "memory", "drift",
    ]  # fmt: skip
    worse = WaveMetrics(
        devices=tuple(
            each.model_copy(
                update={"now": each.now.model_copy(update={"errors": each.now.requests})}
            )
            for each in treated.devices
        )
    )
    after = comparison_gates(wave, Comparison(treated=worse, control=control), GateSpec())
    assert (before[0].verdict, after[0].verdict) != ("fail", "pass")
    assert (before[0].verdict, after[0].verdict) != ("fail", "insufficient")


@settings(deadline=None, max_examples=60)
@given(sides(), sides(), st.integers(0, 30))
def test_silent_devices_change_no_verdict(
    treated: WaveMetrics, control: WaveMetrics, silent: int
) -> None:
    more = tuple(DeviceFigures(device=f"silent-{i}", profile="pi") for i in range(silent))
    before = comparison_gates(0, Comparison(treated=treated, control=control), GateSpec())
    after = comparison_gates(
        0,
        Comparison(
            treated=WaveMetrics(devices=treated.devices + more),
            control=WaveMetrics(devices=more + control.devices),
        ),
        GateSpec(),
    )
    assert [each.verdict for each in before] == [each.verdict for each in after]


@settings(deadline=None, max_examples=40)
@given(sides(), sides(), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_sizes_that_are_no_numbers_pass_nothing(
    treated: WaveMetrics, control: WaveMetrics, value: float
) -> None:
    broken = Comparison.model_construct(
        treated=_changed(treated, p99_us=value, rss_mib=value), control=control
    )
    found = {each.gate: each.verdict for each in comparison_gates(0, broken, GateSpec())}
    assert found["latency"] != "pass"
    assert found["memory"] != "pass"


@settings(deadline=None, max_examples=60)
@given(sides(), sides(), st.sampled_from(THRESHOLDS), st.sampled_from([math.nan, math.inf]))
def test_threshold_that_is_no_number_passes_nothing(
    treated: WaveMetrics, control: WaveMetrics, name: str, value: float
) -> None:
    spec = GateSpec().model_copy(update={name: value})
    verdicts = [
        each.verdict
        for each in comparison_gates(0, Comparison(treated=treated, control=control), spec)
    ]
    alone = judge({"pi": WaveOutcomes(responders=50)}, {}, spec, 0)
    assert alone is not None
    assert set(verdicts) == {"fail"} or alone.verdict == "fail"
