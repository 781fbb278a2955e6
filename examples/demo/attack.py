"""Act 8: a tampered chunk, and a repository signed by a stranger.  Both must be refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloud.signing import ImageRepository, init_keys
from examples.demo.field import FieldDevice, require, wait_for
from examples.demo.stage import MODEL, Stage
from fleet.client.schemas import PublishIn, RolloutDetail, RolloutIn, VariantOut, WaveIn


def attack(stage: Stage) -> str:
    device = stage.devices["skerry-west"]
    before = stage.client.device(device.name).models[MODEL]
    runner_up = _runner_up(stage, "generic-x86-64", before["variant"])
    published = stage.client.publish(MODEL, 1, PublishIn(variants={"generic-x86-64": runner_up.id}))
    newest = max(
        (r for r in published.releases if r["profile"] == "generic-x86-64"),
        key=lambda r: int(r["counter"]),
    )
    with _tampered_blobs(stage.cloud / "blobs", _encodings(newest)):
        tampered = _refused(stage, device, "chunk_corrupt")
    with _strangers_repository(stage):
        forged = _refused(stage, device, "untrusted_metadata")
    after = stage.client.device(device.name).models[MODEL]
    require(after["sha256"] == before["sha256"], "the served bundle has changed")
    require(device.serving(), f"{device.name} no longer serves")
    return (
        f"tampered chunk: {tampered}\nstranger's key: {forged}\n"
        f"both refused; {device.name} goes on with {before['variant']}"
    )


def _runner_up(stage: Stage, profile: str, serving: str) -> VariantOut:
    """Another candidate of the pool: what an operator may publish instead of the winner."""
    pool = [
        v for v in stage.client.model(MODEL, 1).variants
        if v.profile == profile and v.name != serving and v.bundle_sha
    ]  # fmt: skip
    require(pool, f"the pool of {profile} has one candidate only")
    return min(pool, key=lambda v: v.verdict != "PASS")


def _encodings(release: dict[str, object]) -> list[str]:
    info = release["info"]
    assert isinstance(info, dict)
    return [str(encoding["sha256"]) for encoding in info["encodings"]]


@contextmanager
def _tampered_blobs(blobs: Path, digests: list[str]) -> Iterator[None]:
    """Flip one byte in the middle of stored bundles, as an intruder with the disk could."""
    originals = {}
    for digest in digests:
        path = blobs / digest[:2] / digest
        originals[path] = path.read_bytes()
        data = bytearray(originals[path])
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
    try:
        yield
    finally:
        for path, original in originals.items():
            path.write_bytes(original)


@contextmanager
def _strangers_repository(stage: Stage) -> Iterator[None]:
    """Replace the image repository by one that is complete and valid, but a stranger's."""
    image = stage.cloud / "tuf" / "image"
    aside = stage.directory / "owner-image"
    stranger = stage.directory / "stranger"
    ImageRepository(stranger / "image", init_keys(stranger / "keys", "a stranger's passphrase"))
    image.rename(aside)
    shutil.copytree(stranger / "image", image)
    try:
        yield
    finally:
        shutil.rmtree(image)
        aside.rename(image)


def _refused(stage: Stage, device: FieldDevice, reason: str) -> str:
    """Roll the newest release out to `device` alone; it must refuse for `reason`."""
    rollout = stage.client.start_rollout(
        RolloutIn(
            on_failure="halt",
            model=MODEL, version=1, labels={"site": device.name[7:]},
            waves=[WaveIn(percent=100, soak_s=1)], probation_s=1,
        )
    )  # fmt: skip

    def refused() -> RolloutDetail | None:
        detail = stage.client.rollout(rollout.id)
        phases = [a["phase"] for a in detail.assignments]
        stage.detail(f"{device.name} {', '.join(phases)}")
        require("healthy" not in phases, f"{device.name} accepted what it had to refuse ({reason})")
        return detail if detail.state == "HALTED" else None

    detail = wait_for(f"{device.name} refuses ({reason})", refused, 60)
    [assignment] = detail.assignments
    require(
        assignment["reason"] == reason,
        f"refused for {assignment['reason']!r} instead of {reason!r}: {assignment['detail']}",
    )
    require(device.serving(), f"{device.name} stopped serving")
    return f"{reason} ({assignment['detail']})"
