"""The offline ceremony: what waits, what travels, who may sign, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from securesystemslib.formats import encode_canonical
from tuf.api.metadata import Metadata

from cloud.signing import BadRequest, KeysMissing, StaleRequest, init_keys
from cloud.signing.ceremony import (
    SigningRequest,
    apply_request,
    describe,
    make_request,
    read_request,
    sign_request,
    summary_of,
    write_request,
)
from cloud.signing.key_files import read_key, write_key

DAY_S = 86400.0


def key_of(path: Path):
    return read_key(path, b"passphrase")


def carry(plane, *names: str) -> SigningRequest:
    """Ask, sign with these key files of the USB stick, come back; all of it through files."""
    path = plane.directory / "request.json"
    write_request(path, make_request(plane.repositories.values(), plane.clock))
    for name in names:
        signed, _ = sign_request(read_request(path), [key_of(plane.usb / f"{name}.pem")])
        write_request(path, signed)
    return read_request(path)


def waiting(plane) -> list[tuple[str, str]]:
    return [(one.repository, one.role) for r in plane.repositories.values() for one in r.staged()]


def edited(request: SigningRequest, **fields) -> SigningRequest:
    """The request with the first document changed."""
    data = json.loads(request.model_dump_json())
    data["documents"][0] |= fields
    return SigningRequest.model_validate(data)


@pytest.fixture
def offline(plane):
    plane.publish(1)
    plane.take_offline()
    return plane


def test_a_release_waits_until_two_keys_have_signed(offline) -> None:
    assert not offline.publish(2)
    target = "models/digits/p/2.bundle"
    assert offline.image.state_of(target) == "staged"
    assert offline.image.highest_counter("digits", "p") == 2
    assert apply_request(offline.repositories, carry(offline, "image-targets-1")) == {
        "image": ["models/digits/p"]
    }
    assert offline.image.state_of(target) == "staged"
    assert apply_request(offline.repositories, carry(offline, "image-targets-3")) == {"image": []}
    assert offline.image.state_of(target) == "published"
    assert not waiting(offline)


def test_nothing_of_a_staged_release_lies_where_clients_look(offline) -> None:
    before = sorted(path.name for path in offline.image.directory.glob("*.json"))
    offline.publish(2)
    assert sorted(path.name for path in offline.image.directory.glob("*.json")) == before


def test_without_leave_to_stage_a_release_is_refused_whole(offline) -> None:
    with pytest.raises(KeysMissing, match="0 of 2"):
        offline.publish(2, stage=False)
    assert not waiting(offline) and offline.image.highest_counter("digits", "p") == 1


def test_two_people_sign_copies_of_one_request(offline) -> None:
    offline.publish(2)
    request = carry(offline)
    copies = [
        sign_request(request, [key_of(offline.usb / f"image-targets-{n}.pem")])[0] for n in (1, 2)
    ]
    for copy in copies:
        left = apply_request(offline.repositories, copy)
    assert left == {"image": []}


def test_several_releases_travel_together_and_a_new_model_with_its_delegation(offline) -> None:
    offline.publish(2)
    offline.publish(3)
    offline.publish(1, model="letters")
    apply_request(offline.repositories, carry(offline, "image-targets-1", "image-targets-2"))
    for target in ("models/digits/p/2.bundle", "models/digits/p/3.bundle",
                   "models/letters/p/1.bundle"):  # fmt: skip
        assert offline.image.state_of(target) == "published"


def test_what_is_signed_is_published_with_its_delegation_although_another_release_waits(
    offline,
) -> None:
    offline.publish(1, model="a-new-one")
    request = carry(offline, "image-targets-1", "image-targets-2")
    offline.publish(2)
    assert apply_request(offline.repositories, request) == {"image": ["models/digits/p"]}
    assert offline.image.state_of("models/a-new-one/p/1.bundle") == "published"


def test_keys_that_come_back_publish_what_waits_with_the_next_release(offline) -> None:
    offline.publish(2)
    for path in offline.usb.glob("image-targets-*"):
        path.rename(offline.keys_directory / path.name)
    assert offline.publish(3)
    assert offline.image.state_of("models/digits/p/2.bundle") == "published"


def test_a_root_waits_for_old_and_new_keys_and_does_not_hold_up_releases(offline) -> None:
    old = list(offline.director.root().roles["root"].keyids)
    new = [offline.keys.create("director", "root") for _ in old]
    assert not offline.director.rotate("root", old, new)
    offline.take_away("director-root-*.pem")
    offline.publish(2)
    apply_request(offline.repositories, carry(offline, "image-targets-1", "image-targets-2"))
    assert waiting(offline) == [("director", "root")]
    request = carry(offline, "director-root-1", "director-root-2")
    assert apply_request(offline.repositories, request) == {"director": []}
    assert list(offline.director.root().roles["root"].keyids) == [key.keyid for key in new]


def test_new_targets_keys_sign_every_role_before_the_root_that_names_them_is_published(
    offline,
) -> None:
    old = list(offline.image.root().roles["targets"].keyids)
    new = [offline.keys.create("image", "targets") for _ in old]
    offline.take_away("image-targets-*.pem")
    assert not offline.image.rotate("targets", old, new)
    apply_request(offline.repositories, carry(offline, "image-root-1", "image-root-2"))
    assert offline.image.root().version == 1
    apply_request(
        offline.repositories, carry(offline, *(f"image-targets-{key.keyid[:8]}" for key in new[:2]))
    )
    assert offline.image.root().version == 2
    role = offline.image.published("models/digits/p")
    assert set(role.signatures) == {new[0].keyid, new[1].keyid}


@pytest.mark.parametrize("days", [50, 300])
def test_renewals_of_offline_roles_wait_and_are_said(offline, days) -> None:
    offline.clock.now += days * DAY_S
    with pytest.raises(KeysMissing, match="keys request"):
        offline.image.refresh_timestamp()
    names = ["image-targets-1", "image-targets-2"]
    names += ["image-root-1", "image-root-2"] if days > 274 else []
    assert apply_request(offline.repositories, carry(offline, *names)) == {"image": []}
    assert not offline.image.refresh_timestamp()


def test_giving_up_signs_nothing_although_the_keys_have_come_back(offline) -> None:
    offline.publish(2)
    for path in offline.usb.iterdir():
        path.rename(offline.keys_directory / path.name)
    offline.open()
    assert offline.image.discard() == ["models/digits/p"]
    assert offline.image.state_of("models/digits/p/2.bundle") == "unknown"


@pytest.mark.parametrize("name", ["image", "director"])
def test_a_signed_root_whose_online_key_was_lost_waits_and_can_be_given_up(offline, name) -> None:
    repository = offline.repositories[name]
    offline.assign("dev-1")
    out = repository.root().roles["timestamp"].keyids
    new = offline.keys.create(name, "timestamp")
    assert not repository.rotate("timestamp", list(out), [new])
    offline.take_away(f"{name}-timestamp-{new.keyid[:8]}.pem")
    repository = offline.repositories[name]
    signed = carry(offline, f"{name}-root-1", f"{name}-root-2")
    with pytest.raises(KeysMissing, match="not here"):
        apply_request(offline.repositories, signed)
    assert [len(need.signed) for each in repository.staged() for need in each.needs] == [2, 2]
    # what is signed online goes on meanwhile
    offline.clock.now += 4 * DAY_S
    assert offline.image.refresh_timestamp()
    assert offline.director.refresh_timestamps() == 1
    assert repository.root().version == 1
    assert repository.discard() == ["root"]
    assert not waiting(offline)


def test_what_is_given_up_is_gone_and_its_request_worthless(offline) -> None:
    offline.publish(2)
    request = carry(offline, "image-targets-1", "image-targets-2")
    assert offline.image.discard() == ["models/digits/p"]
    assert offline.image.state_of("models/digits/p/2.bundle") == "unknown"
    with pytest.raises(StaleRequest, match="changed since"):
        apply_request(offline.repositories, request)


# ── refused ──────────────────────────────────────────────────────────────────────────────────────


def test_a_request_that_something_newer_overtook_is_refused(offline) -> None:
    offline.publish(2)
    request = carry(offline, "image-targets-1", "image-targets-2")
    offline.publish(3)
    with pytest.raises(StaleRequest, match="keys request"):
        apply_request(offline.repositories, request)
    assert offline.image.state_of("models/digits/p/2.bundle") == "staged"


def test_a_request_applied_twice_changes_nothing(offline) -> None:
    offline.publish(2)
    request = carry(offline, "image-targets-1", "image-targets-2")
    apply_request(offline.repositories, request)
    before = offline.image.published("models/digits/p")
    assert apply_request(offline.repositories, request) == {}
    assert offline.image.published("models/digits/p") == before


def test_a_request_of_another_control_plane_is_refused(offline, tmp_path, pristine) -> None:
    offline.publish(2)
    request = carry(offline, "image-targets-1", "image-targets-2")
    with pytest.raises(BadRequest, match="another control plane"):
        apply_request(offline.repositories, edited(request, repository_id="0" * 64))


def test_attack_07_a_strangers_signature_is_refused(offline, tmp_path) -> None:
    offline.publish(2)
    stranger = init_keys(tmp_path / "stranger", "passphrase").signers("image", "targets")[0]
    request = carry(offline)
    with pytest.raises(BadRequest, match="asked for by nothing"):
        sign_request(request, [stranger])
    document = request.documents[0]
    forged = document.metadata().sign(stranger).signature
    for keyid, message in (
        (stranger.public_key.keyid, "none of its keys"),
        (sorted(document.keyids)[0], "not good"),
    ):
        with pytest.raises(BadRequest, match=message):
            apply_request(offline.repositories, edited(request, signatures={keyid: forged}))
    assert offline.image.state_of("models/digits/p/2.bundle") == "staged"


def test_attack_08_a_root_signed_by_new_keys_only_or_old_only_is_not_published(offline) -> None:
    old = list(offline.image.root().roles["root"].keyids)
    new = [offline.keys.create("image", "root") for _ in old]
    assert not offline.image.rotate("root", old, new)  # the new keys sign at once
    assert offline.image.root().version == 1
    (document,) = make_request([offline.image]).documents
    assert [len(w.keys.keys() & document.signatures.keys()) for w in document.wanted] == [0, 3]
    offline.take_away("image-root-*.pem")
    offline.image.discard()
    assert not offline.image.rotate("root", old, new)
    apply_request(offline.repositories, carry(offline, "image-root-1", "image-root-2"))
    assert offline.image.root().version == 1
    apply_request(
        offline.repositories, carry(offline, *(f"image-root-{key.keyid[:8]}" for key in new[:2]))
    )
    assert offline.image.root().version == 2


def test_an_unsigned_request_is_refused(offline) -> None:
    offline.publish(2)
    with pytest.raises(BadRequest, match="no signatures"):
        apply_request(offline.repositories, carry(offline))


def test_nothing_waiting_makes_no_request(plane) -> None:
    with pytest.raises(BadRequest, match="nothing waits"):
        make_request(plane.repositories.values())


# ── what the person with the key is shown ────────────────────────────────────────────────────────


def test_the_summary_names_what_is_new_only_to_a_key_that_signed_the_version_before(
    offline,
) -> None:
    offline.publish(2)
    request = carry(offline)
    known = summary_of(request, [key_of(offline.usb / "image-targets-1.pem").public_key])
    assert [line for line in known if "releases" in line] == [
        f"  releases models/digits/p/2.bundle: digits version 2 for p, 3 bytes, sha256 {'a' * 64}"
    ]
    unknown = summary_of(request, [key_of(offline.usb / "image-root-1.pem").public_key])
    assert len([line for line in unknown if "releases" in line]) == 2
    assert "did not sign the version before" in unknown[0]


def test_the_summary_believes_neither_the_file_nor_a_forged_version_before(offline) -> None:
    offline.publish(2)
    request = carry(offline)
    after = json.loads(request.documents[0].signed)
    forged = {"signed": after | {"version": 1}, "signatures": []}
    forged["signatures"] = json.loads(json.dumps(request.documents[0].before))["signatures"]
    lying = edited(request, before=forged).model_copy(update={"summary": ("nothing",)})
    lines = summary_of(lying, [key_of(offline.usb / "image-targets-1.pem").public_key])
    assert any("releases models/digits/p/2.bundle" in line for line in lines)


def test_the_summary_names_keys_that_come_and_go(offline) -> None:
    out = offline.image.root().roles["root"].keyids[0]
    new = offline.keys.create("image", "root")
    offline.image.rotate("root", [out], [new])
    lines = summary_of(carry(offline), [key_of(offline.usb / "image-root-2.pem").public_key])
    assert f"  root: key {new.keyid} comes in" in lines and f"  root: key {out} goes out" in lines


def test_another_key_under_a_known_name_is_refused_where_it_would_be_signed(offline) -> None:
    offline.image.rotate("root", [offline.image.root().roles["root"].keyids[0]], [])
    request = carry(offline)
    metadata = request.documents[0].metadata()
    key = metadata.signed.keys[metadata.signed.roles["root"].keyids[0]]
    key.keyval["public"] = "0" * 64
    swapped = edited(request, signed=Metadata(metadata.signed).signed_bytes.decode())
    with pytest.raises(BadRequest, match="calls another key"):
        sign_request(swapped, [key_of(offline.usb / "image-root-2.pem")])


def test_no_name_in_a_request_reaches_the_terminal_as_a_command(offline) -> None:
    offline.publish(2)
    document = carry(offline).documents[0]
    metadata = document.metadata()
    target = metadata.signed.targets["models/digits/p/2.bundle"]
    target.unrecognized_fields["custom"]["model"] = "\x9b2Jdigits\u202e"
    request = edited(carry(offline), signed=metadata.signed_bytes.decode())
    lines = summary_of(request, [])
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no signing request"),
        (b"{}", "made_at"),
        (b"\x00\xff", "no signing request"),
        (b'{"kind": "other", "made_at": 1, "summary": [], "documents": []}', "kind"),
        (b'{"made_at": 1, "summary": [], "documents": []}', "documents"),
        (b"[" * 100_000, "no signing request"),
    ],
)
def test_a_file_that_is_no_request_is_named_in_one_line(tmp_path, content, message) -> None:
    path = tmp_path / "request.json"
    path.write_bytes(content)
    with pytest.raises(BadRequest, match=message) as error:
        read_request(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "signed",
    ["", "[]", "{}", '{"_type": "targets"}', '{"_type": "snapshot"}', "[" * 5000, '{ "a": 1}'],
)
def test_a_document_that_is_no_metadata_is_neither_signed_nor_applied(offline, signed) -> None:
    offline.publish(2)
    request = edited(carry(offline, "image-targets-1", "image-targets-2"), signed=signed)
    with pytest.raises(BadRequest, match="models/digits/p"):
        sign_request(request, [key_of(offline.usb / "image-targets-1.pem")])
    with pytest.raises(BadRequest):
        apply_request(offline.repositories, request)


# ── what a control plane that was taken over would try to have signed ────────────────────────────


def hidden(how: str, targets: dict, stranger: dict[str, dict]) -> None:
    """Change top-level targets so that a summary of names and bytes would not show it."""
    if how == "hash_bins":
        bins = {"keyids": [*stranger], "threshold": 1, "bit_length": 1, "name_prefix": "bin"}
        targets["delegations"] = {"keys": stranger, "succinct_roles": bins}
    elif how == "unknown_field":
        targets["device"] = "d0"
    elif how == "unknown_field_of_a_delegation":
        targets["delegations"]["roles"][0]["note"] = "x"
    elif how == "unknown_field_of_a_target":
        targets["targets"]["a"] = {"length": 1, "hashes": {"sha256": "0" * 64}, "note": "x"}


@pytest.mark.parametrize(
    "how",
    ["hash_bins", "unknown_field", "unknown_field_of_a_delegation", "unknown_field_of_a_target"],
)
def test_nothing_is_signed_that_the_summary_cannot_show(offline, tmp_path, how) -> None:
    offline.publish(1, model="faces")
    request = carry(offline)
    documents = json.loads(request.model_dump_json())["documents"]
    (document,) = [each for each in documents if each["role"] == "targets"]
    signed = json.loads(document["signed"])
    key = write_key(tmp_path / "stranger.pem", b"passphrase")
    hidden(how, signed, {key.keyid: key.to_dict()})
    document["signed"] = encode_canonical(signed)
    forged = SigningRequest.model_validate({**request.model_dump(), "documents": [document]})
    known = key_of(offline.usb / "image-targets-1.pem")
    with pytest.raises(BadRequest, match="cannot be shown"):
        summary_of(forged, [known.public_key])
    with pytest.raises(BadRequest, match="cannot be shown"):
        sign_request(forged, [known])


def test_the_summary_tells_delegates_apart_by_their_whole_keys(offline) -> None:
    # whoever has some hours finds another key of which the first digits are the same
    offline.publish(1, model="faces")
    documents = {each.role: each for each in carry(offline).documents}
    text = "\n".join(describe(documents["targets"], trust_before=True))
    for keyid in offline.image.root().roles["targets"].keyids:
        assert keyid in text


@pytest.mark.parametrize(
    ("field", "value"),
    [("targets", {"a": {"length": 1, "hashes": {"sha256": "0"}, "custom": ["x"]}}), ("x", 1.5)],
)
def test_nonsense_in_a_document_is_one_line(offline, field, value) -> None:
    offline.publish(2)
    request = carry(offline)
    signed = json.loads(request.documents[0].signed) | {field: value}
    with pytest.raises(BadRequest, match="models/digits/p"):
        text = json.dumps(signed, sort_keys=True, separators=(",", ":"))
        summary_of(edited(request, signed=text), [])


def test_nonsense_in_the_version_before_is_not_believed(offline) -> None:
    offline.publish(2)
    request = carry(offline)
    before = json.loads(json.dumps(request.documents[0].before))
    before["signed"]["x"] = 1.5
    key = key_of(offline.usb / "image-targets-1.pem").public_key
    assert "did not sign the version before" in summary_of(edited(request, before=before), [key])[0]
