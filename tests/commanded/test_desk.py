"""The desk on a real journal and a real sampler: an override from its message to samples."""

from __future__ import annotations

import logging
import random
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_agent.commanded.desk import LOGGER, CommandDesk
from edge_agent.commanded.tasks import Sources
from edge_agent.link.outbox import Outbox
from edge_agent.sampling import Sampler
from edge_agent.wire.base import unpack_frame
from edge_agent.wire.commands import COMMAND_NAMES, FINAL_REPORTS, CommandReport
from edge_agent.wire.manifest import SamplingSpec
from tests.commanded.conftest import NOW, command
from tests.sampling.test_sampling import manifest, prediction

SELDOM = manifest(SamplingSpec(uniform_rate=0.0, uncertain_rate=0.0))


@dataclass
class Device:
    """One start of an agent, as far as commands and sampling go."""

    directory: Path
    boot: str
    now: float = NOW
    monotonic: float = 0.0
    updating: str = ""

    def __post_init__(self) -> None:
        self.answered = threading.Event()
        self.outbox = Outbox(self.directory / "outbox.db")
        self.sampler = Sampler(
            self.outbox, key=b"k" * 32, rng=random.Random(1), monotonic=lambda: self.monotonic
        )
        self.desk = CommandDesk(
            Sources(
                directory=self.directory,
                status=lambda: {"device": "cam-1"},
                settings=lambda: {"http_token_file": "secret"},
                metrics=lambda: "",
                inventory=dict,
                updating=lambda: self.updating,
                resend=dict,
            ),
            device_id="cam-1",
            boot=self.boot,
            allowed=COMMAND_NAMES,
            outbox=self.outbox,
            sampler=self.sampler,
            restart=lambda: None,
            now=lambda: self.now,
        )
        self.outbox.on_append(self._look)
        (self.directory / "run").mkdir(exist_ok=True)
        self.desk.open()
        self.thread = threading.Thread(target=self.desk.run, daemon=True)
        self.thread.start()

    def reports(self) -> list[CommandReport]:
        rows = [row for row in self.outbox.pending(100) if row.kind == "command"]
        return [unpack_frame(row.payload, CommandReport)[0] for row in rows]

    def _look(self) -> None:
        if any(report.state in FINAL_REPORTS for report in self.reports()):
            self.answered.set()

    def end(self) -> None:
        self.desk.stop()
        self.thread.join(10)
        self.desk.close()
        self.sampler.stop()
        self.outbox.close()

    def samples(self, predictions: int) -> int:
        """Predict so often, end, and count what was journalled as samples."""
        for number in range(predictions):
            self.sampler.observe([prediction(SELDOM, name=f"p{number}")])
        self.sampler.stop()
        return self.outbox.counts().get("sample", 0)


@pytest.fixture
def started(tmp_path: Path):
    """Starts the device; the last start is ended at the end."""
    running: list[Device] = []

    def start(boot: str, **fields) -> Device:
        if running:
            running.pop().end()
        running.append(Device(tmp_path, boot, **fields))
        return running[-1]

    yield start
    running.pop().end()


def test_an_override_goes_from_its_message_to_samples_and_on_after_a_restart(started):
    first = started("boot-1")
    asked = {"model": "digits", "for_s": 600, "uniform_rate": 1.0}
    first.desk.submit(command("sampling", arguments=asked, expires_at=NOW + 60))
    assert first.answered.wait(10)
    assert [report.state for report in first.reports()] == ["accepted", "done"]
    assert first.samples(3) == 3
    assert list(started("boot-2", now=NOW + 400).desk.status()["sampling"]) == ["digits"]
    again = started("boot-3", now=NOW + 400)
    again.monotonic = 199.0
    assert again.samples(2) == 5
    ended = started("boot-4", now=NOW + 400)
    ended.monotonic = 200.0
    assert ended.samples(2) == 5


def test_what_the_log_said_before_an_orderly_end_is_there_after_it(started):
    first = started("boot-1")
    logging.getLogger(LOGGER).info("thing.happened before=%s", "the end")
    assert first.thread.is_alive()
    second = started("boot-2")
    second.desk.submit(command("logs", arguments={"lines": 100}))
    assert second.answered.wait(10)
    rows = [row.payload for row in second.outbox.pending(10) if row.kind == "command"]
    assert any(b"thing.happened before=the end" in payload for payload in rows)
