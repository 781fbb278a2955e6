"""Are bad versions stopped in the first wave, and good ones never?  On a virtual clock.

    python -m bench.rollouts                    200 rollouts of each version, twice: all devices at
                                                hand, and one in five away
    python -m bench.rollouts --power            what waves of some sizes find, beforehand
    python -m bench.rollouts --version equal --rollouts 2000

Nothing is timed, so the figures are the same on every machine.  The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from fleet.rollouts.model import GateSpec
from fleet.rollouts.power import Detectable, detectable
from fleet.simulate.montecarlo import FLEET, OFFLINE, PROFILES, VERSIONS, WAVES, Result, measure

POWER_FLEETS = (100, 300, 1000, 3000, 10_000)
POWER_WAVES = (0.05, 0.1, 0.2, 0.5)
"""Sizes of a first wave, as shares of the fleet; the rest is the second one."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.rollouts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rollouts", type=int, default=200, help="of each version")
    parser.add_argument("--version", action="append", choices=list(VERSIONS), help="only this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--power", action="store_true", help="a table of first waves, no rollouts")
    given = parser.parse_args(arguments)
    if given.power:
        _power()
    else:
        _measure(given.version or list(VERSIONS), given.rollouts, given.seed)


def _measure(versions: Sequence[str], rollouts: int, seed: int) -> None:
    sizes = ", ".join(str(w.count) if w.count else f"{w.percent:g} %" for w in WAVES)
    print(f"{FLEET.devices} devices, waves of {sizes}; {rollouts} rollouts each\n")
    print("| version | offline | halted in wave 1 | halted or left to a person | completed |")
    print("|---|--:|--:|--:|--:|")
    results: list[Result] = []
    for offline in OFFLINE:
        for version in versions:
            each = measure(version, rollouts, offline=offline, seed=seed)
            results.append(each)
            print(
                f"| {version} | {offline:.0%} | {each.halted_first / rollouts:.1%} "
                f"| {each.stopped / rollouts:.1%} | {each.completed / rollouts:.1%} |",
                flush=True,
            )
    print(
        json.dumps(
            {
                "devices": FLEET.devices,
                "rollouts": rollouts,
                "results": [
                    {
                        "version": each.version,
                        "offline": each.offline,
                        "halted_first_wave": each.halted_first / rollouts,
                        "halted_first_wave_lower": round(each.lower_halted_first, 4),
                        "stopped": each.stopped / rollouts,
                        "stopped_upper": round(each.upper_stopped, 4),
                        "completed": each.completed / rollouts,
                    }
                    for each in results
                ],
            }
        )
    )


def _power() -> None:
    print("| fleet | first wave | failures | p99 | devices with errors | in the smallest profile |")
    print("|--:|--:|--:|--:|--:|--:|")
    rows: list[dict[str, object]] = []
    for devices in POWER_FLEETS:
        for share in POWER_WAVES:
            first = {profile: round(devices * share * part) for profile, part in PROFILES.items()}
            rest = {
                profile: round(devices * part) - first[profile]
                for profile, part in PROFILES.items()
            }
            found = detectable([first, rest], GateSpec())[0]
            rows.append({"fleet": devices, **_row(found)})
            print(
                f"| {devices} | {found.devices} | {_points(found.failure_increase)} "
                f"| {_ratio(found.p99_ratio)} | {_share(found.standing_out)} "
                f"| {_share(found.profile_standing_out)} |"
            )
    print(json.dumps({"first_waves": rows}))


def _row(found: Detectable) -> dict[str, object]:
    return {
        "devices": found.devices,
        "failure_increase": found.failure_increase,
        "p99_ratio": found.p99_ratio,
        "standing_out": found.standing_out,
        "profile_standing_out": found.profile_standing_out,
    }


def _points(value: float | None) -> str:
    return "none" if value is None else f"+{100 * value:.1f} points"


def _ratio(value: float | None) -> str:
    return "none" if value is None else f"+{100 * (value - 1):.0f} %"


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.0%}"


if __name__ == "__main__":
    main()
