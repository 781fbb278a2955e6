from __future__ import annotations

import pytest

from edge_agent.wire.messages import Inventory
from optimizer.detection import Traits, detect, weigh
from optimizer.profiles import HardwareProfile, read_profiles

ARM = frozenset({"asimd", "asimdhp", "asimddp"})
VNNI = frozenset({"avx2", "fma", "f16c", "avx512f", "avx512_vnni"})
AMX = VNNI | {"avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"}
CLIENT = frozenset({"avx2", "fma", "f16c", "avx_vnni"})


@pytest.fixture(scope="module")
def shipped() -> list[HardwareProfile]:
    return read_profiles()


@pytest.mark.parametrize(
    ("traits", "expected"),
    [
        (Traits("x86_64", frozenset({"avx2"})), "generic-x86-64"),
        (Traits("AMD64", frozenset({"avx2"})), "generic-x86-64"),
        (Traits("x86_64", VNNI), "x86-64-vnni"),
        (Traits("x86_64", AMX, cores=2), "x86-64-amx"),
        (Traits("x86_64", CLIENT, cores=4), "intel-n100"),
        (Traits("x86_64", CLIENT, cores=12), "x86-64-avx-vnni"),
        (Traits("x86_64", CLIENT), "x86-64-avx-vnni"),
        (
            Traits("x86_64", CLIENT, "ASUSTeK COMPUTER INC. NUC14RVHv7", cores=14),
            "intel-core-ultra-nuc",
        ),
        (Traits("x86_64", VNNI, accelerators=("Tesla T4",)), "nvidia-t4"),
        (Traits("x86_64", AMX, accelerators=("NVIDIA L4",)), "nvidia-l4"),
        (Traits("x86_64", VNNI, accelerators=("NVIDIA L40S",)), "x86-64-vnni"),
        (Traits("aarch64", ARM, "Raspberry Pi 5 Model B Rev 1.0"), "raspberry-pi-5"),
        (Traits("aarch64", frozenset({"asimd"}), "Raspberry Pi 4 Model B"), "raspberry-pi-4"),
        (Traits("aarch64", ARM, "NVIDIA Jetson Orin Nano Developer Kit"), "jetson-orin-nano"),
        (Traits("aarch64", ARM, "NVIDIA Jetson AGX Orin Developer Kit"), "jetson-agx-orin"),
        (Traits("aarch64", ARM, "Radxa ROCK 5B radxa,rock-5b rockchip,rk3588"), "rockchip-rk3588"),
        (Traits("arm64", ARM), "generic-arm64"),
        (Traits("x86_64", frozenset()), None),
        (Traits("riscv64", frozenset({"avx2"})), None),
    ],
)
def test_a_device_gets_the_most_specific_profile(
    traits: Traits, expected: str | None, shipped: list[HardwareProfile]
) -> None:
    found = detect(traits, shipped)
    assert (found.name if found else None) == expected


def test_an_inventory_finds_its_profile(shipped: list[HardwareProfile]) -> None:
    inventory = Inventory(
        machine="aarch64", system="Linux 6.6", cpu_flags=tuple(ARM), cores=4, memory_mib=8000,
        disk_free_mib=1000, python="3.11.2", runtimes={}, board="Raspberry Pi 5 Model B Rev 1.0",
    )  # fmt: skip
    found = detect(Traits.of(inventory), shipped)
    assert found is not None
    assert found.name == "raspberry-pi-5"


def test_it_is_told_what_matched_and_what_is_missing(shipped: list[HardwareProfile]) -> None:
    fits = weigh(Traits("x86_64", VNNI), shipped)
    assert fits[0].matched == ("machine x86_64", "flags avx2, avx512f, avx512_vnni")
    assert [fit.profile.name for fit in fits if fit.fits] == ["x86-64-vnni", "generic-x86-64"]
    missing = {fit.profile.name: fit.missing for fit in fits}
    assert missing["nvidia-t4"] == ("accelerator T4",)
    assert missing["generic-arm64"] == ("machine aarch64", "flag asimd")
