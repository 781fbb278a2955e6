"""The parts of the benchmark of updates, each at its smallest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.loads.errors import BenchError
from bench.updates import apply, bundles, deltas, line, subjects
from bench.updates.subjects import Effort
from cloud.delta import make_delta

pytestmark = pytest.mark.slow


def test_fine_tuned_networks_are_compared_by_every_tool(tmp_path: Path) -> None:
    subject = subjects.subjects(quick=True)[0]
    short = replace(subject, training=Effort(1, 64, 4e-3), tuning=Effort(1, 64, 1e-4))
    pairs = bundles.pairs(subjects.train(short), tmp_path / "digits")
    assert [pair.kind for pair in pairs] == ["f32", "int8", "int8_new_scales"]
    assert "parent version" in pairs[1].note and not pairs[2].note
    for pair in pairs:
        found = deltas.compare(pair)
        assert 0 < found.moved <= 1
        for tool in (deltas.OURS, *deltas.ALTERNATIVES):
            ratio = found.ratio(tool)
            assert ratio is not None and 0 < ratio < 1.1, tool
        assert found.costs[deltas.OURS].length < found.costs["zstd -19"].length


def test_a_delta_that_gives_other_bytes_is_no_figure() -> None:
    pair = bundles.Pair("digits", "f32", b"a" * 4096, b"b" * 4096, 1.0)
    other = make_delta(pair.old, b"c" * 4096)
    assert other is not None
    with pytest.raises(BenchError, match="does not give the new bundle"):
        deltas.require_same(pair, other.data)
    with pytest.raises(BenchError, match="digits f32: not a delta"):
        deltas.require_same(pair, b"no delta" + bytes(100))


def test_memory_and_time_of_applying_are_told(tmp_path: Path) -> None:
    found = apply.measure(tmp_path / "apply", 8)
    assert found.raw_mib > 8 and 0 < found.delta_mib < found.raw_mib
    assert 0 <= found.peak_mib < found.raw_mib + 20
    assert found.seconds > 0


@pytest.mark.timeout(400)  # fourteen processes start one after the other
def test_a_pull_a_flood_and_ten_kills_over_a_real_broker(tmp_path: Path) -> None:
    with line.plane(tmp_path) as server:
        device = line.ask(server, "device", id=line.DEVICE, profile=bundles.PROFILE)
        data = line.random_bundle(tmp_path / "random", 4)
        release = line.publish(server, data, "line", 1)
        rates = line.rates(server, device, release, tmp_path, 1)
        assert rates.raw_mib_s > 0 and rates.pull_mib_s > 0
        resumed = line.resume(server, device, release, tmp_path)
        assert resumed.kills > 0
        assert resumed.refetched_percent <= resumed.waste_percent <= resumed.sent_percent + 1
        refreshed = line.refresh(server, device, release, tmp_path)
        assert 0 < refreshed["again"]["bytes"] < refreshed["first"]["bytes"]
        with pytest.raises(BenchError, match="control plane: assign"):
            line.ask(server, "assign", device=line.DEVICE, target="models/none")
