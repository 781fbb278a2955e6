"""Whether a device came through: judged by starting the real code on what a crash left."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sqlite3
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from edge_agent.link.errors import LinkError
from edge_agent.wire.messages import FINAL_PHASES
from tests.crash.device import Device
from tests.crash.releases import MODELS, Stage, Versions
from tests.crash.scenarios import Lab, Scenario


class Bricked(Exception):
    """The device did not do what it must after a crash."""


def apart(body: Callable[[], object], timeout: int = 60) -> str:
    """Run `body` in a child process; returns what went wrong, empty when nothing did."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        problem = "the judging process died"
        try:
            os.close(reader)
            logging.disable(logging.CRITICAL)
            body()
            problem = ""
        except Bricked as error:
            problem = str(error)
        except BaseException as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            problem = (
                f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
            )
        finally:
            os.write(writer, json.dumps(problem).encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return str(json.loads(said)) if said else "the judging process died"


def judge(lab: Lab, scenario: Scenario) -> None:
    """After a crash: the old or the new version serves, then the update comes to its end.

    Raises:
        Bricked: how the device failed.
    """
    stage = scenario.stage
    before = lab.finals()
    device = lab.device(stage)
    device.updater.restore()
    serves_old_or_new(device, stage)
    _stands_by(before, device, stage)
    _require(device.update(), f"does not finish: {device.lost}")
    want = stage.after
    if scenario.part == "start" or scenario.pending:
        given_up = any("rolled_back" in line for line in lab.finals())
        want = stage.before if given_up else stage.after
    finished(device, want)
    told_once(device, stage, lab.finals())
    _close(device)
    again = lab.device(stage)
    again.updater.restore()
    finished(again, want)


def serves_old_or_new(device: Device, stage: Stage) -> None:
    """All models answer as before, or all as after the switch; the store says the same."""
    answers = answers_old_or_new(device, stage)
    _require(device.current() == answers, f"serves {answers}, calls {device.current()} current")


def answers_old_or_new(device: Device, stage: Stage) -> Versions:
    """All models answer as before, or all as after the switch; returns which."""
    answers = device.answers()
    old = {model: stage.before[model] for model in MODELS}
    new = {model: stage.tried[model] for model in MODELS}
    _require(answers in (old, new), f"serves {answers}, neither {old} nor {new}")
    return answers


def _stands_by(finals: list[str], device: Device, stage: Stage) -> None:
    """What was reported as final holds after the crash."""
    for line in finals:
        model, version, generation, phase = line.split()
        if int(generation) != stage.desired.version:
            continue
        serves = device.answers()[model]
        if phase == "healthy":
            _require(serves == int(version), f"reported {line!r}, serves {serves}")
        else:
            _require(serves != int(version), f"reported {line!r}, serves it again")


def finished(device: Device, want: Versions) -> None:
    """`want` is served, committed, and nothing is left over."""
    _require(device.answers() == want, f"serves {device.answers()} at the end, not {want}")
    _require(device.current() == want, f"calls {device.current()} current at the end, not {want}")
    _require(not device.pending(), "leaves versions on probation")
    root = device.root / "update"
    left = [path.name for path in root.glob("downloads/*")]
    left += [path.name for path in root.glob("models/*/slots/.tmp*")]
    left += [path.name for path in root.glob("models/*/current.new")]
    _require(not left, f"leaves {left}")
    for model in MODELS:
        slots = [path.name for path in root.glob(f"models/{model}/slots/*")]
        _require(len(slots) <= 2, f"keeps {len(slots)} slots of {model}")


def told_once(device: Device, stage: Stage, finals: list[str]) -> None:
    """Each assignment has one outcome, and each reason is there once, in the journal of reports."""
    for model in stage.desired.models:
        told = [
            (report.phase, report.reason)
            for report in device.reports()
            if report.model == model
            and report.generation == stage.desired.version
            and (report.reason or report.phase in FINAL_PHASES)
        ]
        twice = [each for each, times in Counter(told).items() if times > 1]
        _require(not twice, f"{model}: told more than once: {twice}")
        outcomes: set[str] = {phase for phase, _ in told if phase in FINAL_PHASES}
        # what was told from memory, while the disk took no writes, is in no journal
        for line in finals:
            of, _, generation, phase = line.split()
            if (of, int(generation)) == (model, stage.desired.version):
                outcomes.add(phase)
        _require(len(outcomes) == 1, f"{model}: told {sorted(outcomes) or 'nothing'} in the end")


def _close(device: Device) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        device.store.close()
        device.trust.close()
        device.outbox.close()


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise Bricked(problem)


def disturbed(lab: Lab, scenario: Scenario) -> str:
    """A run on a disk that refuses something: what serves goes on, and the reason is told."""
    stage = scenario.stage
    try:
        device = lab.device(stage)
    except (OSError, sqlite3.Error, LinkError) as error:
        # one line for a person, and another start
        serves = any(stage.before.values())
        return f"does not start: {error}" if serves or scenario.pending else ""
    try:
        device.updater.restore()
        answers_old_or_new(device, stage)
        if scenario.part == "whole":
            device.update()
            answers_old_or_new(device, stage)
        for report in device.reports():
            if report.generation == stage.desired.version and report.reason == "internal_error":
                return f"told internal_error: {report.detail}"
    except Bricked as error:
        return str(error)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})"
    return ""


def recovered(lab: Lab, scenario: Scenario) -> None:
    """With a disk that works again: serves, ends the assignment, and takes the next one.

    Raises:
        Bricked: how the device failed.
    """
    stage = scenario.stage
    device = lab.device(stage)
    device.updater.restore()
    serves_old_or_new(device, stage)
    _require(device.update(), f"does not finish: {device.lost}")
    serves_old_or_new(device, stage)
    told_once(device, stage, lab.finals())
    assert stage.again is not None
    device.stage = stage.again
    _require(device.update(), f"does not finish the next assignment: {device.lost}")
    finished(device, stage.again.after)
    told_once(device, stage.again, lab.finals())
