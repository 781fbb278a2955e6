from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.errors import ConfigError, UnknownProfile
from optimizer.profiles import (
    Figure,
    HardwareProfile,
    Host,
    list_profiles,
    load_profile,
    read_profile,
)

LAPTOP = Host("x86_64", frozenset({"avx2", "avx_vnni"}), cores=6, memory_mib=16_000)


@pytest.mark.parametrize("name", list_profiles())
def test_every_shipped_profile_loads_and_gives_a_source_for_each_figure(name: str) -> None:
    profile = load_profile(name, host=LAPTOP)
    figures = [
        value
        for field in HardwareProfile.model_fields
        if isinstance(value := getattr(profile, field), Figure)
    ]
    assert len(figures) >= 4
    assert all(len(figure.source) > 10 for figure in figures)


@pytest.mark.parametrize("name", sorted(set(list_profiles()) - {"this-machine"}))
def test_every_shipped_profile_says_what_a_planner_and_an_engineer_ask(name: str) -> None:
    profile = load_profile(name)
    assert profile.clock_ghz and profile.storage_gib and profile.precisions and profile.providers
    assert (profile.price_usd is None) == (profile.power_w is None)
    assert profile.price_usd or any("price" in note for note in profile.notes)


def test_this_machine_has_the_figures_of_its_host() -> None:
    profile = load_profile("this-machine", host=LAPTOP)
    assert profile.machine == "x86_64"
    assert profile.flags == {"avx2", "avx_vnni"}
    assert profile.model_threads == 6
    assert profile.has_int8_dot_product


def test_int8_saturates_on_x86_without_vnni_only() -> None:
    assert not load_profile("generic-x86-64").has_int8_dot_product
    assert load_profile("x86-64-vnni").has_int8_dot_product
    assert load_profile("generic-arm64").has_int8_dot_product


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UnknownProfile, match="did you mean 'raspberry-pi-5'"):
        load_profile("raspberrypi5")


@pytest.mark.parametrize("name", ["../secrets", "", "A"])
def test_a_name_that_is_no_slug_reads_no_file(name: str) -> None:
    with pytest.raises(UnknownProfile):
        load_profile(name)


def test_a_profile_without_figures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bare.yaml").write_text("name: bare\ntitle: Bare\nruntimes: [onnxruntime]\n")
    with pytest.raises(ConfigError, match="needs match, isa, cores, memory_mib"):
        load_profile("bare", tmp_path)


BOARD = """\
name: board
title: Board
match: {machines: [aarch64], flags: [asimd]}
isa: {value: [asimd], source: made up for a test}
cores: {value: 4, source: made up for a test}
memory_mib: {value: 1000, source: made up for a test}
reserved_mib: {value: 200, source: made up for a test}
runtimes: [onnxruntime]
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("value: [asimd]", "value: [asimd, i8mm]", "board.yaml:4: match does not ask for i8mm"),
        ("cores:", "coers:", "board.yaml:5: .*'coers'; did you mean 'cores'"),
        (", source: made up for a test}\nruntimes", "}\nruntimes", "board.yaml:7: .*source"),
        ("value: 200", "value: 1000", "reserved_mib leaves no memory"),
        ("name: board", "name: bord", "board.yaml:1: .*must be bord.yaml"),
        ("[onnxruntime]", "[tflite]", "board.yaml:8: .*runtimes"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    assert old in BOARD
    path = tmp_path / "board.yaml"
    path.write_text(BOARD.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        read_profile(path)


def test_what_the_system_needs_is_no_models_memory(tmp_path: Path) -> None:
    (tmp_path / "board.yaml").write_text(BOARD)
    assert load_profile("board", tmp_path).usable_mib == 800
