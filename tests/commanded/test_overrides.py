"""Sampling overrides: for a time, over restarts, and within the manifest's bounds."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from edge_agent.commanded.errors import Failed
from edge_agent.commanded.overrides import MAX_MODELS, Overrides
from edge_agent.sampling import Override
from edge_agent.wire.commands import SamplingArguments


@dataclass
class Sampler:
    held: dict[str, tuple[Override, float]] = field(default_factory=dict)

    def override(self, model, override, for_s=0.0):
        if override is None:
            self.held.pop(model, None)
        else:
            self.held[model] = (override, for_s)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def asked(model="digits", for_s=600.0, **rates) -> SamplingArguments:
    return SamplingArguments(model=model, for_s=for_s, **rates)


def test_an_override_holds_for_what_is_left_after_a_restart(tmp_path):
    clock, first, second = Clock(), Sampler(), Sampler()
    Overrides(tmp_path / "o.json", first, clock).set(asked(uniform_rate=1.0))
    assert first.held == {"digits": (Override(uniform_rate=1.0), 600.0)}
    clock.now += 400
    again = Overrides(tmp_path / "o.json", second, clock)
    again.restore()
    assert second.held == {"digits": (Override(uniform_rate=1.0), 200.0)}
    assert list(again.status()) == ["digits"]


def test_an_override_that_ended_while_the_device_was_off_is_not_taken_up(tmp_path):
    clock, sampler = Clock(), Sampler()
    Overrides(tmp_path / "o.json", Sampler(), clock).set(asked(uniform_rate=1.0))
    clock.now += 601
    again = Overrides(tmp_path / "o.json", sampler, clock)
    again.restore()
    assert (sampler.held, again.status()) == ({}, {})


def test_a_clock_that_was_set_back_prolongs_nothing_beyond_what_was_asked(tmp_path):
    clock, sampler = Clock(), Sampler()
    Overrides(tmp_path / "o.json", Sampler(), clock).set(asked(uniform_rate=1.0))
    clock.now = 0.0
    Overrides(tmp_path / "o.json", sampler, clock).restore()
    assert sampler.held["digits"][1] == 600.0


def test_zero_seconds_end_an_override_for_good(tmp_path):
    clock, sampler, second = Clock(), Sampler(), Sampler()
    overrides = Overrides(tmp_path / "o.json", sampler, clock)
    overrides.set(asked(uniform_rate=1.0))
    overrides.set(asked(for_s=0))
    Overrides(tmp_path / "o.json", second, clock).restore()
    assert (sampler.held, second.held) == ({}, {})


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b'{"models": {"digits": {"until": 1e12, "for_s": 1e12}}}', b"x" * 100_000],
    ids=["empty", "cut", "too long", "too large"],
)
def test_a_file_that_makes_no_sense_is_no_override(tmp_path, data):
    (tmp_path / "o.json").write_bytes(data)
    sampler = Sampler()
    Overrides(tmp_path / "o.json", sampler, Clock()).restore()
    assert sampler.held == {}


def test_overrides_are_bounded_in_number(tmp_path):
    overrides = Overrides(tmp_path / "o.json", Sampler(), Clock())
    for number in range(MAX_MODELS):
        overrides.set(asked(f"m{number}", uniform_rate=0.5))
    with pytest.raises(Failed, match="already"):
        overrides.set(asked("one-more", uniform_rate=0.5))
