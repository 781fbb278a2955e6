"""Claims: once, in time, by who knows the secret."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fleet.enrolment import claims


@pytest.fixture
def fresh():
    return claims.new_claim()


@pytest.fixture
def stored(fresh):
    return claims.StoredClaim(fresh.secret_sha256, 100.0, None, False, "p")


def test_a_fresh_claim_is_accepted_until_it_ends(fresh, stored):
    claims.check(stored, fresh.secret, 99.9)
    claims.check(stored, fresh.secret, 99.9, profile="p")


@pytest.mark.parametrize(
    ("changes", "now", "message"),
    [
        ({"used_by": "cam-1"}, 0.0, "used already"),
        ({"revoked": True}, 0.0, "revoked"),
        ({}, 100.0, "expired"),
        ({}, float("nan"), "expired"),
        ({"expires_at": float("nan")}, 0.0, "expired"),
    ],
)
def test_a_claim_that_gives_no_right_says_why(fresh, stored, changes, now, message):
    with pytest.raises(claims.ClaimRefused, match=message):
        claims.check(replace(stored, **changes), fresh.secret, now)


def test_a_wrong_secret_learns_nothing_about_the_claim(stored):
    with pytest.raises(claims.ClaimRefused, match="unknown claim or wrong secret"):
        claims.check(replace(stored, revoked=True, used_by="x"), "guess", 0.0)


def test_another_profile_is_refused(fresh, stored):
    with pytest.raises(claims.ClaimRefused, match="profile 'p'"):
        claims.check(stored, fresh.secret, 0.0, profile="q")


def test_secrets_differ_are_long_and_are_not_shown(fresh):
    other = claims.new_claim()
    assert other.secret != fresh.secret
    assert other.claim_id != fresh.claim_id
    assert len(fresh.secret) >= 43
    assert fresh.secret not in repr(fresh)


def test_the_key_that_used_a_claim_gets_its_certificate_again_even_late(fresh, stored):
    used = replace(stored, used_by="cam-1", key_sha256="aa")
    assert claims.check(stored, fresh.secret, 0.0, key_sha256="aa") is claims.Grant.NEW
    for now in (0.0, 1e9):
        assert claims.check(used, fresh.secret, now, key_sha256="aa") is claims.Grant.AGAIN
    for other in ("bb", ""):
        with pytest.raises(claims.ClaimRefused, match="used already"):
            claims.check(used, fresh.secret, 0.0, key_sha256=other)
    with pytest.raises(claims.ClaimRefused, match="revoked"):
        claims.check(replace(used, revoked=True), fresh.secret, 0.0, key_sha256="aa")


def test_a_claim_of_before_keys_were_kept_is_not_given_again(fresh, stored):
    with pytest.raises(claims.ClaimRefused, match="used already"):
        claims.check(replace(stored, used_by="cam-1"), fresh.secret, 0.0, key_sha256="")


def test_a_claim_for_one_device_enrols_no_other(fresh, stored):
    bound = replace(stored, device="cam-1")
    assert claims.check(bound, fresh.secret, 0.0, name="cam-1") is claims.Grant.NEW
    assert claims.check(bound, fresh.secret, 0.0) is claims.Grant.NEW
    with pytest.raises(claims.ClaimRefused, match="'cam-1' and no other"):
        claims.check(bound, fresh.secret, 0.0, name="cam-2")
