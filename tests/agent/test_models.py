"""Versions between updater and data plane: loading in time, changing together, their memory."""

from __future__ import annotations

import io
import sqlite3
import tarfile
import threading
from pathlib import Path

import pytest

from edge_agent.agent import _open_outbox
from edge_agent.link.errors import OutboxBroken
from edge_agent.link.outbox import Outbox
from edge_agent.models import Models
from edge_agent.pipeline import GoldenMismatch
from edge_agent.sampling import Sampler
from edge_agent.serve import DataPlane, NotServable, ServedModel
from edge_agent.update.serving import NotActivated

from .conftest import tiny_bundle

HANGS = "import time\n\ntime.sleep(600)\n"


def slot(tmp_path: Path, version: int, model: str = "tiny", code: str = "") -> Path:
    """An unpacked bundle."""
    data = tiny_bundle(tmp_path / f"source-{model}-{version}", version, model, code)
    directory = tmp_path / f"slot-{model}-{version}"
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(directory, filter="data")
    return directory


class Closing(ServedModel):
    """Says when it is closed."""

    def __init__(self, served: ServedModel, closed: threading.Event) -> None:
        super().__init__(served.manifest, served.pipeline, served.cost)
        self._told = closed

    def _close(self) -> None:
        super()._close()
        self._told.set()


@pytest.fixture
def models(tmp_path: Path):
    outbox = Outbox(tmp_path / "outbox.db")
    sampler = Sampler(outbox, key=b"k" * 32, ring_bytes=0)
    plane = DataPlane()
    made = Models(
        plane, sampler, replacing=lambda model: None, changed=lambda: None, load_timeout_s=20.0
    )
    made.plane = plane
    yield made
    plane.close()
    sampler.stop()
    outbox.close()


def test_fault_28_a_version_that_hangs_at_load_is_left_and_the_old_one_serves(
    models, tmp_path: Path
) -> None:
    models.activate("tiny", slot(tmp_path, 1))
    models._load_timeout_s = 0.3
    with pytest.raises(NotServable, match=r"not loaded in 0\.3 s"):
        models.activate("tiny", slot(tmp_path, 2, code=HANGS))
    assert models.plane.model("tiny").version == 1
    assert "not loaded" in models.faults["tiny"]
    models.activate("tiny", tmp_path / "slot-tiny-1")
    assert models.faults == {}


def test_what_loads_too_late_is_closed_and_never_serves(models, tmp_path: Path) -> None:
    go_on, closed = threading.Event(), threading.Event()

    def slow(directory: Path):
        assert go_on.wait(20)
        return Closing(ServedModel.load(directory), closed)

    models._open = slow
    models._load_timeout_s = 0.05
    with pytest.raises(NotServable):
        models.activate("tiny", slot(tmp_path, 1))
    go_on.set()
    assert closed.wait(20)
    assert models.plane.models == {}


def test_fault_30_of_a_group_none_serves_when_one_does_not_load(models, tmp_path: Path) -> None:
    for model in ("tiny", "other"):
        models.activate(model, slot(tmp_path, 1, model))
    broken = slot(tmp_path, 2, "other")
    (broken / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(NotActivated, match=r"model\.onnx differs") as raised:
        models.activate_all({"tiny": slot(tmp_path, 2), "other": broken})
    assert raised.value.model == "other"
    assert {name: served.version for name, served in models.plane.models.items()} == {
        "tiny": 1,
        "other": 1,
    }


def test_memory_is_that_of_the_version_and_not_of_the_one_before(models, tmp_path: Path) -> None:
    now = [100.0]

    def growing(directory: Path) -> ServedModel:
        now[0] += 50.0
        return ServedModel.load(directory)

    models._rss_mib, models._open = lambda: now[0], growing
    for version in (1, 2):
        models.activate("tiny", slot(tmp_path, version))
    assert now[0] == 200.0
    assert models.health("tiny").rss_mib == 150.0
    now[0] = 180.0  # what was closed came back
    assert models.health("tiny").rss_mib == 150.0
    now[0] = 260.0  # and then it leaks
    assert models.health("tiny").rss_mib == 230.0


def test_golden_inputs_are_asked_again_where_they_serve(models, tmp_path: Path) -> None:
    directory = slot(tmp_path, 1)
    models.activate("tiny", directory)
    models.recheck("tiny")
    models.recheck("unknown")
    (directory / "golden.npz").write_bytes((slot(tmp_path, 3) / "golden.npz").read_bytes())
    with pytest.raises(GoldenMismatch):
        models.recheck("tiny")


# ── the journal ──────────────────────────────────────────────────────────────────────────────────


def test_a_damaged_journal_is_kept_aside_and_a_new_one_begun(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    path.write_bytes(b"no database at all" * 1000)
    outbox = _open_outbox(path, 1_000_000)
    assert outbox.append("report", b"x") == 1
    outbox.close()
    assert (tmp_path / "outbox.db.damaged").read_bytes().startswith(b"no database")


def test_a_journal_damaged_inside_is_kept_aside_too(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    outbox = Outbox(path)
    for _ in range(50):
        outbox.append("report", b"x" * 1000)
    outbox.close()
    data = bytearray(path.read_bytes())
    data[100:4096] = b"\xff" * (4096 - 100)
    path.write_bytes(data)
    outbox = _open_outbox(path, 1_000_000)
    assert outbox.count() == 0
    outbox.close()


def test_a_journal_that_cannot_be_opened_stays_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    path.mkdir()
    with pytest.raises(OutboxBroken) as raised:
        _open_outbox(path, 1_000_000)
    assert isinstance(raised.value.__cause__, sqlite3.Error)
    assert path.is_dir()
