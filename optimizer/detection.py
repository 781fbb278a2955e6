"""Which profile a device belongs to, and why.

The facts are those of a device's inventory, so what this machine is found to be is what a device
like it would be found to be.  A profile fits when all that its match rule asks for is there; of
those that fit, the highest priority wins.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from edge_agent.runtime.cpu import cpu_flags
from edge_agent.runtime.hardware import accelerators, board
from edge_agent.wire.messages import Inventory
from optimizer.profiles import (
    HardwareProfile,
    Host,
    Match,
    canonical_machine,
)


@dataclass(frozen=True)
class Traits:
    """What match rules look at.

    Attributes:
        machine: `uname -m`.
        flags: CPU flags, as `edge_agent.runtime.cpu_flags` names them.
        board: text of the device tree or DMI; empty where there is none.
        accelerators: names that the drivers give.
        cores: 0 where it is not known.
    """

    machine: str
    flags: frozenset[str]
    board: str = ""
    accelerators: tuple[str, ...] = ()
    cores: int = 0

    @classmethod
    def here(cls) -> Traits:
        """Those of this machine."""
        host = Host.here()
        return cls(platform.machine(), frozenset(cpu_flags()), board(), accelerators(), host.cores)

    @classmethod
    def of(cls, inventory: Inventory) -> Traits:
        """Those of the device that sent `inventory`."""
        return cls(
            inventory.machine,
            frozenset(inventory.cpu_flags),
            inventory.board,
            inventory.accelerators,
            inventory.cores,
        )


@dataclass(frozen=True)
class Fit:
    """How a device and a profile go together.

    Attributes:
        matched: what the rule asks for and the device has, one line each.
        missing: what it asks for and the device has not; empty where the profile fits.
    """

    profile: HardwareProfile
    matched: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not self.missing

    @property
    def priority(self) -> int:
        return self.profile.match.priority if self.profile.match else 0


def weigh(traits: Traits, profiles: Iterable[HardwareProfile]) -> list[Fit]:
    """Every profile that has a match rule, the best first: those that fit by falling priority, then
    those that miss least."""
    fits = [
        check(traits, profile, profile.match) for profile in profiles if profile.match is not None
    ]
    return sorted(fits, key=lambda fit: (len(fit.missing), -fit.priority, fit.profile.name))


def detect(traits: Traits, profiles: Iterable[HardwareProfile]) -> HardwareProfile | None:
    """The most specific of `profiles` that a device belongs to, or `None`."""
    best = next(iter(weigh(traits, profiles)), None)
    return best.profile if best and best.fits else None


def check(traits: Traits, profile: HardwareProfile, match: Match) -> Fit:
    """Hold a device against the match rule of `profile`."""
    matched: list[str] = []
    missing: list[str] = []

    def note(fits: bool, has: str, lacks: str) -> None:
        (matched if fits else missing).append(has if fits else lacks)

    machine = canonical_machine(traits.machine)
    wanted = sorted({canonical_machine(name) for name in match.machines})
    note(machine in wanted, f"machine {machine}", f"machine {' or '.join(wanted)}")
    if match.flags:
        present = [flag for flag in match.flags if flag in traits.flags]
        if present:
            matched.append(f"flags {', '.join(present)}")
        missing += [f"flag {flag}" for flag in match.flags if flag not in traits.flags]
    for kind, phrases, texts in (
        ("board", match.boards, (traits.board,)),
        ("accelerator", match.accelerators, traits.accelerators),
    ):
        if phrases:
            found = _found(phrases, texts)
            note(found is not None, f"{kind} {found}", f"{kind} {' or '.join(phrases)}")
    if match.max_cores:
        few = 0 < traits.cores <= match.max_cores
        note(few, f"{traits.cores} cores", f"at most {match.max_cores} cores")
    return Fit(profile, tuple(matched), tuple(missing))


def _found(phrases: Iterable[str], texts: Collection[str]) -> str | None:
    """The first phrase that stands in one of `texts` as whole words: "L4" is not in "L40S".

    The last word of a phrase that ends in "*" may go on.
    """
    for phrase in phrases:
        end = "" if phrase.endswith("*") else r"(?!\w)"
        words = re.escape(phrase.removesuffix("*"))
        pattern = re.compile(rf"(?<!\w){words}{end}", re.IGNORECASE)
        if any(pattern.search(text) for text in texts):
            return phrase
    return None
