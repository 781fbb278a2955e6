"""What is run, in which order, and what each part finds.  Prints nothing but one line a step."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.updates import agent, apply, bundles, deltas, line, subjects
from bench.updates.agent import Updated
from bench.updates.apply import Applied
from bench.updates.deltas import Compared
from bench.updates.line import Rates, Resumed

PARTS: Final = ("deltas", "apply", "line", "agent")


@dataclass(frozen=True, slots=True)
class Settings:
    """How large and how often.

    Attributes:
        quick: small networks, hardly trained: shows that all works; its ratios mean nothing.
        pulled_mib: of the bundle that is pulled and resumed.
        rounds: of floor and pull in turn.
        ballast_mib: of what is beside the network of the agent that is updated.
    """

    parts: tuple[str, ...] = PARTS
    quick: bool = False
    artefact_mib: int = apply.ARTEFACT_MIB
    pulled_mib: int = 100
    rounds: int = 5
    ballast_mib: int = 32

    @classmethod
    def small(cls, parts: tuple[str, ...]) -> Settings:
        return cls(parts, True, artefact_mib=8, pulled_mib=8, rounds=1, ballast_mib=2)


@dataclass(slots=True)
class Tuned:
    """How a subject learnt: errors on new data before and after."""

    name: str
    about: str
    parameters: int
    error_before: float
    error_after: float


@dataclass(slots=True)
class Found:
    """Everything that a run found; what was left out is `None` or empty."""

    tuned: list[Tuned] = field(default_factory=list)
    compared: list[Compared] = field(default_factory=list)
    applied: Applied | None = None
    rates: Rates | None = None
    resumed: Resumed | None = None
    refresh_first_bytes: int = 0
    refresh_again_bytes: int | None = None
    updated: Updated | None = None

    def headline(self) -> dict[str, float]:
        """The figures by which updates are judged; ratios are sums over all networks."""
        figures: dict[str, float] = {}
        for kind, key in (("int8", "delta_ratio_int8"), ("f32", "delta_ratio_f32")):
            if (ratio := self.ratio(kind, deltas.OURS)) is not None:
                figures[key] = round(ratio, 4)
        ahead = self.ahead()
        if ahead is not None:
            figures["int8_over_best_alternative"] = round(ahead, 3)
        if self.applied is not None:
            figures["apply_peak_mib"] = round(self.applied.peak_mib, 1)
        if self.rates is not None:
            figures["pull_share_of_raw"] = round(self.rates.share, 3)
        if self.resumed is not None:
            figures["resume_waste_percent"] = round(self.resumed.waste_percent, 2)
        if self.refresh_again_bytes is not None:
            figures["bytes_refresh_unchanged"] = self.refresh_again_bytes
        if self.updated is not None:
            took = sorted(self.updated.publish_to_serving_s)
            figures["seconds_publish_to_serving"] = round(took[len(took) // 2], 2)
            figures["agent_over_idle_mib"] = round(self.updated.over_idle_mib, 1)
        return figures

    def ratio(self, kind: str, tool: str) -> float | None:
        """Bytes of one tool over raw bytes, of all networks together."""
        of_kind = [each for each in self.compared if each.kind == kind]
        lengths = [each.costs[tool].length for each in of_kind]
        made = [length for length in lengths if length is not None]
        if not of_kind or len(made) < len(of_kind):
            return None
        return sum(made) / sum(each.raw for each in of_kind)

    def ahead(self) -> float | None:
        """Ours over the best alternative in int8, of the network where we are nearest to it."""
        worst = None
        for each in self.compared:
            ours = each.ratio(deltas.OURS)
            others = [each.ratio(tool) for tool in deltas.ALTERNATIVES]
            best = min((other for other in others if other is not None), default=None)
            if each.kind == "int8" and ours is not None and best is not None:
                worst = max(worst or 0.0, ours / best)
        return worst


def say(text: str) -> None:
    print(f"· {text}", file=sys.stderr, flush=True)


def run(settings: Settings, place: Path, tell: Callable[[str], None] = say) -> Found:
    """Measure the parts that are asked for.

    Args:
        place: an empty directory with room for a few bundles.

    Raises:
        BenchError: something could not be measured.
    """
    found = Found()
    if "deltas" in settings.parts:
        _deltas(found, settings, place / "deltas", tell)
    if "apply" in settings.parts:
        tell(f"a delta of {settings.artefact_mib} MiB is applied")
        found.applied = apply.measure(place / "apply", settings.artefact_mib)
    if "line" in settings.parts or "agent" in settings.parts:
        with line.plane(place) as server:
            if "line" in settings.parts:
                tell("the line")
                device = line.ask(server, "device", id=line.DEVICE, profile=bundles.PROFILE)
                data = line.random_bundle(place / "random", settings.pulled_mib)
                release = line.publish(server, data, "line", 1)
                found.rates = line.rates(server, device, release, place, settings.rounds)
                found.resumed = line.resume(server, device, release, place)
                refreshed = line.refresh(server, device, release, place)
                found.refresh_first_bytes = refreshed["first"]["bytes"]
                found.refresh_again_bytes = refreshed["again"]["bytes"]
            if "agent" in settings.parts:
                tell("an agent is updated")
                found.updated = agent.measure(server, place / "updated", settings.ballast_mib)
    return found


def _deltas(found: Found, settings: Settings, place: Path, tell: Callable[[str], None]) -> None:
    for subject in subjects.subjects(settings.quick):
        tell(f"{subject.name}: trained, and trained further on new data")
        trained = subjects.train(subject)
        parameters = sum(each.numel() for each in trained.old.parameters())
        found.tuned.append(
            Tuned(
                subject.name, subject.about, parameters, trained.error_before, trained.error_after
            )
        )
        for pair in bundles.pairs(trained, place / subject.name):
            tell(f"{subject.name} {pair.kind}: {len(pair.new):,} bytes, by every tool")
            found.compared.append(deltas.compare(pair))
