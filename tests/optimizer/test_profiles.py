from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.errors import ConfigError, UnknownProfile
from optimizer.profiles import Host, detect, list_profiles, load_profile

LAPTOP = Host("x86_64", frozenset({"avx2", "avx_vnni"}), cores=6, memory_mib=16_000)


@pytest.mark.parametrize("name", list_profiles())
def test_every_shipped_profile_loads_and_gives_a_source_for_each_figure(name: str) -> None:
    profile = load_profile(name, host=LAPTOP)
    assert profile.cores is not None
    assert profile.memory_mib is not None
    for figure in (profile.isa, profile.cores, profile.memory_mib, profile.power_w):
        assert figure is None or len(figure.source) > 10


def test_this_machine_has_the_figures_of_its_host() -> None:
    profile = load_profile("this-machine", host=LAPTOP)
    assert profile.machine == "x86_64"
    assert profile.flags == {"avx2", "avx_vnni"}
    assert profile.model_threads == 6
    assert profile.has_int8_dot_product


@pytest.mark.parametrize(
    ("flags", "machine", "board", "expected"),
    [
        ({"avx2"}, "x86_64", "", "generic-x86-64"),
        ({"avx2"}, "AMD64", "", "generic-x86-64"),
        ({"avx2", "avx512f", "avx512_vnni"}, "x86_64", "", "x86-64-vnni"),
        ({"asimd", "asimddp"}, "aarch64", "Raspberry Pi 5 Model B Rev 1.0", "raspberry-pi-5"),
        ({"asimd", "asimddp"}, "arm64", "", "generic-arm64"),
        (set(), "x86_64", "", None),
        ({"avx2"}, "riscv64", "", None),
    ],
)
def test_a_device_gets_the_most_specific_profile(
    flags: set[str], machine: str, board: str, expected: str | None
) -> None:
    found = detect(flags, machine, board)
    assert (found.name if found else None) == expected


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
