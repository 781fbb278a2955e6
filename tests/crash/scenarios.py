"""What is crashed: lives of a device up to a stage, each with the directory it begins with."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_agent.wire.messages import FINAL_PHASES
from tests.crash import power, tracer
from tests.crash.device import Device
from tests.crash.releases import History, Stage

Part = Literal["whole", "start"]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run that is crashed.

    Attributes:
        base: the device's files before it.
        part: `whole` starts the agent and applies the stage's twin; `start` only starts it.
        pending: whether `base` has the stage's versions on probation.
    """

    name: str
    stage: Stage
    base: power.Tree
    part: Part = "whole"
    pending: bool = False


@dataclass(frozen=True, slots=True)
class Lab:
    """Where runs take place; a process has its own."""

    directory: Path
    roots: tuple[str, str]

    def fresh(self, tree: power.Tree) -> Path:
        """A device's directory with these files; the one before is gone."""
        shutil.rmtree(self.directory, ignore_errors=True)
        power.write(tree, self.directory / "device")
        return self.directory / "device"

    def device(self, stage: Stage) -> Device:
        return Device(self.directory / "device", stage, self.roots, self.said)

    @property
    def said(self) -> Path:
        """Where reports are noted when the agent has made them."""
        return self.directory / "said"

    def reports(self) -> str:
        """All of `said`."""
        return self.said.read_text() if self.said.exists() else ""

    def finals(self) -> list[str]:
        """Lines of `said`, without those of phases that are passed through."""
        lines = self.reports().splitlines()
        return [line for line in lines if line.split()[-1] in FINAL_PHASES]


def live(lab: Lab, scenario: Scenario) -> int:
    """Body of a run."""
    device = lab.device(scenario.stage)
    device.updater.restore()
    if scenario.part == "whole":
        device.update()
    return 0


def prepare(directory: Path) -> tuple[Lab, list[Scenario]]:
    """Sign the releases, and bring a device to the start of each scenario."""
    history = History(directory / "history")
    lab = Lab(directory / "prepared", history.roots)
    install = history.stage("install", {"digits": 1})
    update = history.stage("update", {"digits": 2})
    third = history.stage("update by a delta, removes the oldest", {"digits": 3})
    back = history.stage("operator's roll-back", {"digits": 2})
    sick = history.stage("automatic roll-back", {"digits": 4}, sick=["digits"])
    pair = history.stage("group", {"digits": 5, "letters": 1}, group="pair")
    sick_pair = history.stage(
        "group's roll-back", {"digits": 6, "letters": 2}, sick=["letters"], group="pair-2"
    )
    history.close()
    scenarios, tree = [], power.Tree()
    for stage in (install, update, third, back, sick, pair, sick_pair):
        scenarios.append(Scenario(stage.name, stage, tree))
        if stage in (update, sick_pair):
            scenarios += _unproven(lab, scenarios[-1])
        tree = _run(lab, scenarios[-1] if stage is not update else scenarios[1], tree)
    return lab, scenarios


def _run(lab: Lab, scenario: Scenario, tree: power.Tree) -> power.Tree:
    root = lab.fresh(tree)
    ended = tracer.run(lambda: live(lab, scenario), root, lambda operation: 0)
    if ended.status:
        raise RuntimeError(f"{scenario.name} does not run even undisturbed")
    return power.read(root)


def _unproven(lab: Lab, scenario: Scenario) -> list[Scenario]:
    """Starts of an agent whose version was killed in its probation, once and too often."""
    root = lab.fresh(scenario.base)

    def in_probation(operation: tracer.Operation) -> int:
        return tracer.KILL if " probation\n" in lab.reports() else 0

    tracer.run(lambda: live(lab, scenario), root, in_probation)
    once = power.read(root)
    start = Scenario(f"{scenario.name}: start in probation", scenario.stage, once, pending=True)
    tree = once
    for _ in range(3):
        tree = _run(lab, Scenario("", scenario.stage, tree, "start"), tree)
    given_up = Scenario(
        f"{scenario.name}: given up at the start", scenario.stage, tree, "start", pending=True
    )
    return [start, given_up]
