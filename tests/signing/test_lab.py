"""`lab/*`: allowed once by the targets keys, then signed by a key that is online."""

from __future__ import annotations

import pytest

from cloud.signing import KeysMissing, LabAssignment
from cloud.signing.ceremony import apply_request, make_request, sign_request
from cloud.signing.image import LAB_ROLE
from cloud.signing.key_files import read_key
from edge_agent.wire.lab import LabInfo, LabTarget, lab_target
from edge_agent.wire.manifest import Encoding

SHA = "b" * 64
TARGET = LabTarget(target=lab_target("bundle", SHA), sha256=SHA, length=3)
INFO = LabInfo(
    kind="bundle", encodings=(Encoding(algo="raw", sha256=SHA, length=3, chunks_sha256=SHA),)
)
CANDIDATES = {TARGET.target: (TARGET, INFO)}


def named(plane) -> set[str]:
    metadata = plane.image.published(LAB_ROLE)
    return set() if metadata is None else set(metadata.signed.targets)


def test_candidates_come_and_go_without_the_offline_keys(plane):
    assert plane.image.open_lab()
    assert plane.image.open_lab()
    plane.take_offline()
    plane.image.name_candidates(CANDIDATES)
    assert named(plane) == {TARGET.target}
    before = plane.image.published(LAB_ROLE).signed.version
    plane.image.name_candidates(CANDIDATES)
    assert plane.image.published(LAB_ROLE).signed.version == before
    plane.image.name_candidates({})
    assert named(plane) == set()


def test_nothing_is_named_before_the_offline_keys_allowed_it(plane):
    plane.image  # noqa: B018 (signs the first metadata while all keys are here)
    plane.take_offline()
    assert not plane.image.open_lab()
    with pytest.raises(KeysMissing, match="skerry keys request"):
        plane.image.name_candidates(CANDIDATES)
    request = make_request(plane.repositories.values())
    assert any("lab" in line for line in request.summary)
    signers = [
        read_key(path, b"passphrase") for path in sorted(plane.usb.glob("image-targets-*"))[:2]
    ]
    signed, _ = sign_request(request, signers)
    assert apply_request(plane.repositories, signed) == {"image": []}
    plane.image.name_candidates(CANDIDATES)
    assert named(plane) == {TARGET.target}


def test_its_key_signs_no_release(plane):
    plane.publish(1)
    plane.image.open_lab()
    targets = plane.image.published("targets").signed
    lab = targets.delegations.roles[LAB_ROLE]
    assert lab.paths == ["lab/*"] and lab.terminating
    others = [role for name, role in targets.delegations.roles.items() if name != LAB_ROLE]
    assert others and not any(set(role.keyids) & set(lab.keyids) for role in others)
    assert not set(plane.image.root().keys) & set(lab.keyids)


def test_it_outlives_a_change_of_the_targets_keys(plane):
    plane.publish(1)
    plane.image.open_lab()
    plane.image.name_candidates(CANDIDATES)
    out = plane.image.root().roles["targets"].keyids[0]
    assert plane.image.rotate("targets", [out], [plane.keys.create("image", "targets")])
    plane.take_offline()
    plane.image.name_candidates({})
    assert named(plane) == set()


def test_it_is_renewed_online(plane):
    plane.image.open_lab()
    plane.take_offline()
    first = plane.image.published(LAB_ROLE).signed.expires
    plane.clock.now += 4 * 86_400
    assert plane.image.refresh_timestamp()
    assert plane.image.published(LAB_ROLE).signed.expires > first


def test_the_director_names_the_orders_beside_the_releases(plane):
    plane.director.assign("cam-1", [], [LabAssignment(TARGET, INFO, ("c" * 64,))])
    assert plane.director.assigned("cam-1") == [TARGET.target]
    plane.director.assign("cam-1", [])
    assert plane.director.assigned("cam-1") == []
