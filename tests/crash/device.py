"""A device without a line: the agent's update part on files, and real pipelines that answer.

Everything below `Updater` is real: trust, transfer, installer, store, journal, outbox.  The control
plane is a directory (`releases.Stage`); the self-test opens the staged bundle and runs its golden
inputs as the subprocess does, but in this process, which is the one that is crashed.
"""

from __future__ import annotations

import os
import queue
import time
from pathlib import Path

import numpy as np
import onnxruntime  # noqa: F401 - once, and not in each of the processes that are forked

from edge_agent.agent import _open_outbox
from edge_agent.serve import ServedModel
from edge_agent.update.marks import Marks
from edge_agent.update.ports import ChunkReplies, HealthSample, NotFound
from edge_agent.update.reading import require_intact
from edge_agent.update.selftest import SelfTestResult
from edge_agent.update.trust import Trust
from edge_agent.update.updater import open_updater
from edge_agent.wire.messages import ChunkReply, ChunkRequest, UpdateReport
from tests.crash.releases import DEVICE, MODELS, Stage, Versions
from tests.update.conftest import PROFILE

_ASKED = {"image": np.ones((1, 4), np.float32)}
PASSES = 8
"""Passes over a twin, as many as the updater's thread makes within two minutes."""


class Chunks:
    """The chunk port on a directory of blobs."""

    def __init__(self, blobs: Path) -> None:
        self._blobs = blobs
        self.replies: ChunkReplies = queue.Queue()

    def request(self, request: ChunkRequest) -> None:
        data = (self._blobs / request.sha256).read_bytes()
        for bit in range(int(request.bitmap, 16).bit_length()):
            if int(request.bitmap, 16) >> bit & 1:
                index = request.first + bit
                start = index * request.chunk_bytes
                reply = ChunkReply(sha256=request.sha256, index=index)
                self.replies.put((reply, data[start : start + request.chunk_bytes]))


class Device:
    """The update part of an agent in `root`; what it serves is in `serving`."""

    def __init__(self, root: Path, stage: Stage, roots: tuple[str, str], said: Path) -> None:
        """
        Args:
            said: a file beside `root` that gets a line a report, when the agent has made it.
        """
        self.root = root
        self.stage = stage
        self.serving: dict[str, ServedModel] = {}
        self.lost: dict[str, str] = {}
        root.mkdir(exist_ok=True)
        self._said = said
        self.outbox = _open_outbox(root / "outbox.db", 1 << 20)
        self.trust = Trust(
            root / "trust", self._fetch, DEVICE, PROFILE,
            image_root=roots[0], director_root=roots[1],
        )  # fmt: skip
        self.updater, self.store = open_updater(
            root / "update",
            trust=self.trust,
            fetch=self._fetch,
            chunks=Chunks(stage.directory.parent / "blobs"),
            activate=self._activate,
            deactivate=self._deactivate,
            report=self._report,
            health=self._health,
            selftest=_selftest,
        )

    def update(self) -> bool:
        """What the updater's thread does, without its pauses; whether all is settled."""
        self.updater.submit(self.stage.desired)
        for _ in range(PASSES):
            try:
                self.updater.finish_probations()
                if self.updater.apply(self.stage.desired):
                    return True
            except Exception as error:
                self.lost[type(error).__name__] = str(error)
        return False

    def answers(self) -> Versions:
        """Which version answers, asked as a client does."""
        return {model: self._answer(model) for model in MODELS}

    def current(self) -> Versions:
        """Which version the store calls current; its files are what was signed."""
        versions: Versions = dict.fromkeys(MODELS)
        for model in self.store.models():
            installed = self.store.current(model)
            assert installed is not None
            manifest = require_intact(installed.path)
            assert (manifest.model, manifest.version) == (model, installed.version)
            link = installed.path.parent.parent / "current"
            assert link.resolve() == installed.path.resolve(), "the link points elsewhere"
            counter = self._marks.counter(model, PROFILE)
            assert counter >= installed.counter, "its counter was accepted, and is forgotten"
            versions[model] = installed.version
        return versions

    @property
    def _marks(self) -> Marks:
        return self.trust._marks  # what it accepts depends on them, but it tells nobody

    def pending(self) -> list[str]:
        """Models whose current version is on probation."""
        installed = [self.store.current(model) for model in self.store.models()]
        return [each.model for each in installed if each is not None and each.pending]

    def reports(self) -> list[UpdateReport]:
        """All that the outbox holds."""
        rows = self.outbox.pending(10_000)
        return [UpdateReport.decode(row.payload) for row in rows if row.kind == "report"]

    def _answer(self, model: str) -> int | None:
        served = self.serving.get(model)
        if served is None:
            return None
        scores = served.pipeline.run(_ASKED).tensors["scores"]
        version = round(float(scores[0, 0]))
        assert np.array_equal(scores, np.full((1, 4), version, np.float32)), scores
        assert version == served.version, "one version answers in the name of another"
        return version

    # ── ports ────────────────────────────────────────────────────────────────────────────────────

    def _fetch(self, path: str) -> bytes:
        kind, _, name = path.partition("/")
        here = self.stage.directory
        if kind == "chunks":
            file = here.parent / "blobs" / name
        elif kind == "image" or name.endswith(".root.json"):
            file = here / kind / name
        else:
            file = here / "director" / "devices" / DEVICE / name
        try:
            return file.read_bytes()
        except FileNotFoundError:
            raise NotFound(path) from None

    def _activate(self, model: str, directory: Path) -> None:
        require_intact(directory)
        self.serving[model] = ServedModel.load(directory)

    def _deactivate(self, model: str) -> None:
        self.serving.pop(model, None)

    def _report(self, report: UpdateReport) -> None:
        self.outbox.append("report", report.encode(), once=report.model)
        line = f"{report.model} {report.version} {report.generation} {report.phase}\n"
        descriptor = os.open(self._said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(descriptor, line.encode())
        os.close(descriptor)

    def _health(self, model: str) -> HealthSample | None:
        served = self.serving.get(model)
        sick = (
            served is not None
            and model in self.stage.sick
            and served.version == self.stage.new.get(model)
        )
        return HealthSample(requests=100, errors=100 if sick else 0, latency_p99_ms=1.0)


def _selftest(slot: Path) -> SelfTestResult:
    started_at = time.monotonic()
    try:
        ServedModel.load(slot).pipeline.close()
    except Exception as error:
        return SelfTestResult(False, str(error), time.monotonic() - started_at)
    return SelfTestResult(True, "", time.monotonic() - started_at)
