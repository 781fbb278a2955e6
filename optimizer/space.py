"""The space that a search looks through, and what its points are called.

A point is one way to serve one member: a recipe (with its config), a runtime, threads, instances.
The batch is no axis: the largest one that is worth making is measured for each point.

Names, which are also those of bundles and directories:

    small/ort-int8                the recipe's first runtime, the profile's threads, one instance
    small/ort-int8@openvino-t2    another runtime, two threads; only what differs is said
    small/ort-int8+rows=64        a second config of the same recipe

Pure: no file, no clock.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edge_agent.wire.manifest import RuntimeName, StepSpec
from optimizer.profiles import HardwareProfile

MAX_INSTANCES: Final = 8


@dataclass(frozen=True)
class Point:
    """One way to serve a member.

    Attributes:
        threads: intra-op threads of each instance.
        instances: requests that run at the same time; they share the weights.
        label: the recipe's name, told apart from other configs of it; the plain name where empty.
    """

    member: str
    recipe: StepSpec
    runtime: RuntimeName
    threads: int
    instances: int = 1
    label: str = ""

    @property
    def artifact(self) -> str:
        """`MEMBER/RECIPE`: points that share it share their files."""
        return f"{self.member}/{self.label or self.recipe.name}"

    def name(self, native: RuntimeName, threads: int) -> str:
        """`MEMBER/RECIPE`, and behind an `@` what differs from the usual.

        Args:
            native: the first runtime of the recipe.
            threads: of the profile.
        """
        parts: list[str] = []
        if self.runtime != native:
            parts.append(self.runtime)
        if self.threads != threads:
            parts.append(f"t{self.threads}")
        if self.instances != 1:
            parts.append(f"i{self.instances}")
        return f"{self.artifact}@{'-'.join(parts)}" if parts else self.artifact


@dataclass(frozen=True)
class Axes:
    """How far the search varies what is run beside the files themselves.

    Attributes:
        other_runtimes: try runtimes of a recipe beside its first.
        threads: `None` for powers of two up to the profile's cores, and the profile's own number.
        instances: `None` for powers of two that fit the cores, where the budget names a rate;
            without a rate one request runs at a time, so more instances change nothing.
    """

    other_runtimes: bool = True
    threads: tuple[int, ...] | None = None
    instances: tuple[int, ...] | None = None


USUAL: Final = Axes(other_runtimes=False, threads=(), instances=(1,))
"""Each recipe on its first runtime, with the profile's threads, one instance."""


@dataclass(frozen=True)
class Choice:
    """A recipe of a search.

    Attributes:
        runtimes: those that open its files, the native one first.
    """

    step: StepSpec
    runtimes: tuple[RuntimeName, ...]
    label: str = ""


def place_of(name: str) -> str:
    """The directory of a candidate below that of its profile."""
    return name.replace("/", "-")


def parse_name(name: str) -> tuple[str, str, str]:
    """Member, recipe, and the label of the recipe's config, of a candidate's name."""
    member, _, rest = name.partition("/")
    label = rest.partition("@")[0]
    return member, label.partition("+")[0], label


def labels(steps: Sequence[StepSpec]) -> list[str]:
    """What each recipe is called: its name, with the config where a name occurs again."""
    seen: set[str] = set()
    found = []
    for step in steps:
        label = step.name if step.name not in seen else step.name + _suffix(step)
        while label in seen:  # the very same once more
            label += "+again"
        seen.add(label)
        found.append(label)
    return found


def grid(
    profile: HardwareProfile,
    members: Sequence[str],
    choices: Sequence[Choice],
    axes: Axes,
    *,
    rate: bool,
) -> list[Point]:
    """All points of one profile; by member, recipe, runtime, the usual threads first.

    Args:
        rate: the budget names a rate of requests.
    """
    points = []
    for member in members:
        for choice in choices:
            runtimes = choice.runtimes if axes.other_runtimes else choice.runtimes[:1]
            points += [
                Point(member, choice.step, runtime, threads, instances, choice.label)
                for runtime in runtimes
                if runtime in profile.runtimes
                for threads in _threads(profile, axes)
                for instances in _instances(profile, axes, threads, rate)
            ]
    return points


def _threads(profile: HardwareProfile, axes: Axes) -> list[int]:
    usual = profile.model_threads
    wanted = axes.threads
    if wanted is None:
        wanted = tuple(_powers(_cores(profile)))
    return list(dict.fromkeys((usual, *wanted)))


def _instances(profile: HardwareProfile, axes: Axes, threads: int, rate: bool) -> list[int]:
    wanted = axes.instances
    if wanted is None:
        at_most = min(_cores(profile) // threads, MAX_INSTANCES)
        wanted = tuple(_powers(at_most)) if rate else ()
    return list(dict.fromkeys((1, *wanted)))


def _cores(profile: HardwareProfile) -> int:
    return profile.cores.value if profile.cores else 1


def _powers(limit: int) -> list[int]:
    return [1 << bit for bit in range(limit.bit_length())] if limit > 0 else []


def _suffix(step: StepSpec) -> str:
    """The config in a form that a file name can hold."""
    parts = []
    for key, value in sorted(step.config.items()):
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        if not (text.isascii() and text.replace(".", "").replace("-", "").isalnum()):
            text = hashlib.sha256(text.encode()).hexdigest()[:6]
        parts.append(f"+{key}={text}")
    return "".join(parts) or "+default"
