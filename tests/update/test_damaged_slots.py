"""A slot that the disk damaged: told, and mended by assigning its release again."""

from __future__ import annotations

import pytest

from edge_agent.update.errors import BadBundle
from edge_agent.update.reading import committed, is_store, require_intact


@pytest.fixture
def installed(world, device, weights):
    """A device whose first release is committed, and the release."""
    release = world.release(1, world.bundle(1, weights(1)))
    assert device.apply(world.assign(device.id, release, 1))
    return release


def flip(path, offset=100):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_one_flipped_bit_is_seen(device, installed):
    slot = device.store.current("digits").path
    assert require_intact(slot).version == 1
    flip(slot / "model.onnx")
    with pytest.raises(BadBundle, match=r"model\.onnx differs from the manifest"):
        require_intact(slot)
    (slot / "model.onnx").unlink()
    with pytest.raises(BadBundle, match=r"model\.onnx is missing"):
        require_intact(slot)
    (slot / "manifest.json").write_text("{")
    with pytest.raises(BadBundle, match=r"manifest\.json"):
        require_intact(slot)


def test_a_committed_version_that_does_not_load_is_never_reported_healthy(world, device, installed):
    digest = device.store.current("digits").sha256
    device.refuse_to_activate.add(digest)
    device.power_off()
    device.reports.clear()
    device.boot()
    assert device.serving == {}
    device.apply(world.assign(device.id, installed, 2))
    assert "healthy" not in device.phases()


def test_a_damaged_slot_is_fetched_anew_when_its_release_is_assigned_again(
    world, device, installed
):
    slot = device.store.current("digits").path
    flip(slot / "model.onnx")
    device.refuse_to_activate.add(slot.name)
    device.power_off()
    device.boot()
    device.refuse_to_activate.clear()
    device.chunks.requested.clear()
    assert device.apply(world.assign(device.id, installed, 2))
    assert device.phases()[-1] == "healthy"
    assert device.chunks.requested
    require_intact(slot)
    assert device.served_version() == 1


def test_readers_see_what_is_committed_and_not_what_is_on_probation(
    world, device, installed, weights
):
    root = device.directory / "update"
    assert is_store(root)
    assert not is_store(device.directory)
    first = committed(root)["digits"]
    assert (first.version, first.path) == (1, device.store.current("digits").path)
    second = world.release(2, world.bundle(2, weights(2)))
    seen = []
    device.updater._health = lambda model: seen.append(committed(root)["digits"].version)
    assert device.apply(world.assign(device.id, second, 2))
    assert set(seen) == {1}
    assert committed(root)["digits"].version == 2
