"""A sample of the crash matrix, and faults at rest.  `make crash` tries every point."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.crash import power, tracer
from tests.crash.device import Device
from tests.crash.releases import History, Stage
from tests.crash.scenarios import Lab
from tests.crash.verdict import finished

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(tracer.supported()), reason=tracer.supported()),
]


def matrix(*arguments: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.matrix", *arguments],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    figures: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return figures


@pytest.mark.timeout(600)
def test_fault_23_24_30_crashes_and_refusals_leave_the_old_version_or_the_new_one() -> None:
    figures = matrix("--sample", "50")
    assert (figures["tried"], figures["bricked"]) == (50, 0)
    assert figures["points"] > 10_000


# ── faults at rest ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, Stage, power.Tree]]:
    """A lab, the stage to come, and a device that serves version 1."""
    directory = tmp_path_factory.mktemp("life")
    history = History(directory / "history")
    install, update = history.stage("", {"digits": 1}), history.stage("", {"digits": 2})
    history.close()
    lab = Lab(directory / "lab", history.roots)
    root = lab.fresh({})
    device = lab.device(install)
    assert device.update()
    close(device)
    return lab, update, power.read(root)


def close(device: Device) -> None:
    device.updater.stop()
    device.store.close()
    device.trust.close()
    device.outbox.close()


@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "cut"])
def test_fault_25_a_damaged_metadata_cache_neither_stops_serving_nor_the_next_update(
    life: tuple[Lab, Stage, power.Tree], damage: str
) -> None:
    lab, update, base = life
    files = [path for path, content in base.items() if path.startswith("trust/") and content]
    assert len(files) > 8
    for path in files:
        tree = dict(base)
        content = tree.pop(path)
        if damage != "missing":
            whole = content if isinstance(content, bytes) else b""
            tree[path] = {
                "empty": b"", "garbage": b"\x00{garbage" * 50, "cut": whole[: len(whole) // 2],
            }[damage]  # fmt: skip
        lab.fresh(tree)
        device = lab.device(update)
        device.updater.restore()
        assert device.answers() == update.before, path
        assert device.update(), (path, device.lost)
        assert device.answers() == update.after, path
        close(device)


def test_fault_29_power_cycles_never_revert_a_committed_version(
    life: tuple[Lab, Stage, power.Tree],
) -> None:
    lab, update, base = life
    lab.fresh(base)
    device = lab.device(update)
    device.updater.restore()
    assert device.update()
    for _ in range(10):
        device = lab.device(update)  # without a stop before it, as after a power cycle
        device.updater.restore()
        finished(device, update.after)


def test_a_version_is_never_taken_for_another(life: tuple[Lab, Stage, power.Tree]) -> None:
    lab, update, base = life
    lab.fresh(base)
    device = lab.device(update)
    device.updater.restore()
    device.serving["digits"].manifest = device.serving["digits"].manifest.model_copy(
        update={"version": 2}
    )
    with pytest.raises(AssertionError, match="in the name of another"):
        device.answers()
    close(device)
