"""The share of requests that a version under trial takes."""

from __future__ import annotations

import pytest

from edge_agent.serve.split import Split

KEYS = [f"client-{number}" for number in range(20_000)]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9, 1.0])
def test_the_share_of_keys_is_the_share_asked_for(share: float) -> None:
    split = Split("models/digits/pi/4.bundle", share)
    taken = sum(map(split.takes, KEYS))
    spread = 4 * (share * (1 - share) * len(KEYS)) ** 0.5
    assert abs(taken - share * len(KEYS)) <= spread


def test_a_key_is_drawn_alike_however_often_and_in_another_process() -> None:
    one, other = Split("trial", 0.3), Split("trial", 0.3)
    assert [one.takes(key) for key in KEYS[:500]] == [other.takes(key) for key in KEYS[:500]]
    # the hash is part of what a restart keeps: it never changes
    assert [key for key in KEYS[:12] if one.takes(key)] == ["client-3", "client-7"]


def test_a_larger_share_keeps_who_was_taken_before() -> None:
    split = Split("trial", 0.1)
    few = {key for key in KEYS if split.takes(key)}
    split.share = 0.4
    many = {key for key in KEYS if split.takes(key)}
    assert few < many
    split.share = 0.1
    assert {key for key in KEYS if split.takes(key)} == few


def test_another_trial_draws_other_keys() -> None:
    one = {key for key in KEYS if Split("trial-1", 0.5).takes(key)}
    other = {key for key in KEYS if Split("trial-2", 0.5).takes(key)}
    assert 0.4 < len(one & other) / len(one) < 0.6


def test_any_text_is_a_key() -> None:
    split = Split("trial", 0.5)
    for key in ("", "é" * 10_000, "\udcff", "\x00"):
        assert split.takes(key) in (True, False)
