"""What is installed together: units of one assignment, or of all those of a group.  Pure.

The twin groups what the device tries together; the director's signed set decides whether that is
the whole group.  A release that was signed into a group is never installed without the others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from edge_agent.update.errors import IncompleteGroup
from edge_agent.wire.messages import Desired, DesiredModel


@dataclass(frozen=True, slots=True)
class Unit:
    """Assignments that are installed all or none.

    Attributes:
        group: its name; None for an assignment that stands alone.
        wants: what is wanted of each model.
        trial: it is to be tried beside the version that serves; a unit of one.
    """

    group: str | None
    wants: Mapping[str, DesiredModel]
    trial: bool = False

    @property
    def key(self) -> tuple[tuple[str, int, str], ...]:
        """Tells units apart; equal for the same assignments."""
        return tuple(
            (model, want.generation, want.target) for model, want in sorted(self.wants.items())
        )


def units(desired: Desired) -> list[Unit]:
    """The twin's assignments as units, in the order of the twin."""
    grouped: dict[tuple[str | None, str], dict[str, DesiredModel]] = {}
    for model, want in desired.models.items():
        key = (None, model) if want.group is None else (want.group, "")
        grouped.setdefault(key, {})[model] = want
    return [Unit(group, wants) for (group, _), wants in grouped.items()]


def trials(desired: Desired) -> list[Unit]:
    """The twin's trials, one a unit."""
    return [Unit(None, {model: want}, trial=True) for model, want in desired.trials.items()]


def unit_of(desired: Desired | None, model: str) -> Unit | None:
    """The unit that has `model`; None when nothing is wanted of it."""
    if desired is None:
        return None
    return next((each for each in units(desired) if model in each.wants), None)


def require_whole(
    unit: Unit, signed_groups: Mapping[str, str | None], members: Collection[str]
) -> None:
    """Hold a unit of the twin against what the director signed.

    Args:
        signed_groups: target of each of the unit → its group as signed.
        members: every target that the director signed into `unit.group`.

    Raises:
        IncompleteGroup: they do not name the same; a newer twin or newer metadata is on its way.
    """
    for target, group in signed_groups.items():
        if group != unit.group:
            raise IncompleteGroup(
                f"{target} was assigned {_name(unit.group)}, but signed {_name(group)}"
            )
    if unit.group is None:
        return
    wanted = {want.target for want in unit.wants.values()}
    if missing := sorted(set(members) - wanted):
        raise IncompleteGroup(f"group {unit.group} has {missing[0]} too, which is not wanted yet")


def _name(group: str | None) -> str:
    return "alone" if group is None else f"in group {group}"
