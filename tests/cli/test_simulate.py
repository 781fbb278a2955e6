"""Options of `skerry simulate`."""

from __future__ import annotations

import pytest
import typer

from cloud.cli.simulate_commands import parse_profiles, virtual


def test_profiles_are_read_with_their_weights() -> None:
    assert parse_profiles("raspberry-pi-5=3, intel-n100") == {
        "raspberry-pi-5": 3.0,
        "intel-n100": 1.0,
    }


@pytest.mark.parametrize("text", ["", "a=x", "=1", "a=0", "a=-1", "a,,b", "a=nan"])
def test_what_is_no_profile_is_named(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not NAME or NAME=WEIGHT"):
        parse_profiles(text)


def test_an_unknown_virtual_version_is_answered_with_those_there_are() -> None:
    with pytest.raises(typer.BadParameter, match="'equal'"):
        virtual(version="perfect", rollouts=1, offline=0.0, seed=0)
