"""`skerry profiles`: tables for people, JSON for scripts, one line for what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from optimizer.profiles import PROFILE_DIRECTORY, list_profiles


def test_the_list_has_each_profile_with_its_price(command) -> None:
    done = command("profiles", "list")
    assert done.code == 0
    for name in list_profiles():
        assert f"\n{name} " in done.out
    assert "$4,608 a year" in done.out


def test_a_profile_is_shown_with_its_sources_or_as_json(command) -> None:
    shown = command("profiles", "show", "nvidia-t4").out
    assert "15,360 MiB" in shown
    assert "NVIDIA T4 datasheet" in shown
    figures = json.loads(command("profiles", "show", "nvidia-t4", "--json").out)
    assert figures["accelerator"]["memory_mib"]["value"] == 15360


def test_an_own_profile_is_found_in_its_directory(command, tmp_path: Path) -> None:
    text = (PROFILE_DIRECTORY / "generic-x86-64.yaml").read_text()
    (tmp_path / "own-pc.yaml").write_text(text.replace("name: generic-x86-64", "name: own-pc"))
    assert "\nown-pc " in command("profiles", "list", "--profiles", tmp_path).out
    assert command("profiles", "list", "--profiles", tmp_path / "none").code == 2


def test_a_machine_without_a_profile_is_told_the_nearest(command, tmp_path: Path) -> None:
    text = (PROFILE_DIRECTORY / "raspberry-pi-5.yaml").read_text()
    (tmp_path / "raspberry-pi-5.yaml").write_text(text.replace("[aarch64]", "[riscv64]"))
    done = command("profiles", "detect", "--profiles", tmp_path)
    assert done.code == 2
    assert "nearest is raspberry-pi-5, without machine riscv64" in done.err
    assert done.err.count("\n") == 1


def test_every_wrong_file_is_named_with_its_line(command, tmp_path: Path) -> None:
    good, bad, worse = (tmp_path / f"{name}.yaml" for name in ("nvidia-l4", "bad", "worse"))
    shutil.copy(PROFILE_DIRECTORY / "nvidia-l4.yaml", good)
    bad.write_text("name: bad\ntitle: Bad\nruntimes: [onnxruntime]\nfans: 2\n")
    worse.write_text("name: [\n")
    done = command("profiles", "validate", bad, good, worse)
    assert done.code == 2
    assert "nvidia-l4: good" in done.out
    first, second = done.err.splitlines()
    assert "bad.yaml:4: unknown key 'fans'" in first
    assert "worse.yaml:" in second
