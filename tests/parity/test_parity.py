"""`skerry parity` on real parts: registry, released bundles, and devices that serve them.

One of each kind is fast: at parity, a batch that differs, a device that agrees, what is refused.
The others are slow together, since each publishes a version or starts a device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_agent.wire.manifest import StepSpec
from tests.parity.conftest import (
    NORMALISE,
    SHRINK,
    STEPS,
    Plane,
    Ran,
    make_bundle,
    save_inputs,
    serving,
)
from tests.runtime.networks import images

Skerry = Callable[..., Ran]
BATCHES = ("--batches", "1,2,3")


@pytest.fixture(scope="module")
def released(plane: Plane, tmp_path_factory: pytest.TempPathFactory) -> int:
    """The version under test, whose batches answer as single items do."""
    directory = tmp_path_factory.mktemp("released")
    make_bundle(directory)
    return plane.publish(directory, dataset=plane.dataset())


# ── batches ──────────────────────────────────────────────────────────────────────────────────────


def test_a_version_that_answers_alike_in_any_batch_is_at_parity(
    skerry: Skerry, released: int
) -> None:
    ran = skerry("parity", f"digits:{released}", *BATCHES)
    assert ran.code == 0, ran.error
    assert ran.output.rstrip().endswith("PARITY")
    assert f"digits:{released} this-machine linear/fp32, 3 items" in ran.output


def test_a_step_that_normalises_over_the_batch_is_named(
    skerry: Skerry, plane: Plane, tmp_path: Path
) -> None:
    make_bundle(tmp_path, shrink=NORMALISE)
    version = plane.publish(tmp_path)
    ran = skerry("parity", f"digits:{version}", *BATCHES, "--json")
    assert ran.code == 1, ran.error
    assert ran.json["verdict"] == "DIFFERS"
    for comparison in ran.json["comparisons"]:
        assert comparison["against"] == "batch of 1"
        first = comparison["first"]
        assert (first["index"], first["step"], first["tensor"]) == (2, "ours.shrink", "image")
        assert first["max_abs"] > 0.01
        assert first["share"] > 0.9
    assert [each["batch"] for each in ran.json["comparisons"]] == [2, 3]
    shown = skerry("parity", f"digits:{version}", "--batches", "2")
    assert "2 ours.shrink (image)" in shown.output
    assert shown.output.rstrip().endswith("DIFFERS")


@pytest.mark.slow
def test_a_batch_that_fails_is_named_with_its_step(
    skerry: Skerry, plane: Plane, tmp_path: Path
) -> None:
    make_bundle(tmp_path / "a", shrink=f"{SHRINK} if len(image) in (1, 3) else missing")
    version = plane.publish(tmp_path / "a")
    ran = skerry("parity", f"digits:{version}", *BATCHES, "--json")
    by_size = {each["batch"]: each for each in ran.json["comparisons"]}
    assert by_size[3]["verdict"] == "PARITY"
    assert by_size[2]["first"]["step"] == "ours.shrink"
    assert by_size[2]["first"]["differs"] == "failed"
    assert "missing" in by_size[2]["first"]["detail"]


@pytest.mark.slow
def test_an_interface_with_a_fixed_batch_has_nothing_to_compare_without_a_device(
    skerry: Skerry, plane: Plane, tmp_path: Path
) -> None:
    manifest = make_bundle(tmp_path)
    fixed = tuple(s.model_copy(update={"shape": (3, *s.shape[1:])}) for s in manifest.inputs)
    manifest = manifest.model_copy(update={"inputs": fixed})
    (tmp_path / "manifest.json").write_bytes(manifest.encode())
    ran = skerry("parity", f"digits:{plane.publish(tmp_path)}")
    assert ran.code == 2
    assert "fixes the batch axis at 3" in ran.output
    assert ran.output.rstrip().endswith("INCONCLUSIVE")


# ── devices ──────────────────────────────────────────────────────────────────────────────────────


def test_a_device_that_serves_the_release_is_at_parity_step_by_step(
    skerry: Skerry, released: int, tmp_path: Path
) -> None:
    make_bundle(tmp_path, version=released)
    with serving(tmp_path, debug=True) as device:
        ran = skerry("parity", "digits", "--device", device.url, *BATCHES, "--json")
    assert ran.code == 0, ran.output
    report = ran.json
    assert (report["version"], report["shows_steps"]) == (released, True)
    on_device = [each for each in report["comparisons"] if each["against"] == "device"]
    assert [(each["batch"], each["items"]) for each in on_device] == [(1, 3), (2, 4), (3, 3)]
    for comparison in on_device:
        steps = [(each["index"], each["step"]) for each in comparison["findings"]]
        assert steps == [
            (1, "ours.light"), (2, "ours.shrink"), (3, "rename"), (4, "model"),
            (5, "classify"), (5, "classify"), (6, "answer"), (6, "answer"),
        ]  # fmt: skip
        assert comparison["label_flips"] == 0


@pytest.mark.slow
def test_a_device_that_deviates_in_a_middle_step_is_caught_there(
    skerry: Skerry, released: int, tmp_path: Path
) -> None:
    make_bundle(tmp_path, version=released, shrink=f"{SHRINK} * np.float32(1.01)")
    with serving(tmp_path, debug=True) as device:
        ran = skerry("parity", "digits", "--device", device.url, *BATCHES, "--json")
        shown = skerry("parity", "digits", "--device", device.url, "--batches", "1")
    assert ran.code == shown.code == 1
    for comparison in ran.json["comparisons"]:
        if comparison["against"] == "batch of 1":
            assert comparison["verdict"] == "PARITY"
            continue
        first = comparison["first"]
        assert (first["index"], first["step"], first["tensor"]) == (2, "ours.shrink", "image")
        assert first["max_rel"] == pytest.approx(0.01, rel=1e-3)
        assert first["max_abs"] < 0.011
    assert "2 ours.shrink (image)" in shown.output


@pytest.mark.slow
def test_the_administrative_socket_shows_steps_without_debug_and_tells_the_profile(
    skerry: Skerry, released: int, tmp_path: Path
) -> None:
    make_bundle(tmp_path, version=released)
    about = {"profile": "this-machine", "models": {"digits": {"variant": "linear/fp32"}}}
    with serving(tmp_path, status=about) as device:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "agent.json").write_text(f'{{"unix_socket": "{device.socket}"}}')
        for where in (("--socket", device.socket), ("--agent", tmp_path)):
            ran = skerry("parity", "digits", *where, *BATCHES, "--json")
            assert ran.code == 0, ran.output + ran.error
            assert ran.json["shows_steps"] is True
            assert ran.json["device"] == str(device.socket)
        other = skerry("parity", "digits", "--socket", device.socket, "--profile", "pi")
    assert other.says("profile 'this-machine'", "'pi'")


@pytest.mark.slow
def test_a_device_that_refuses_traces_is_compared_by_its_answers(
    skerry: Skerry, released: int, tmp_path: Path
) -> None:
    make_bundle(tmp_path / "same", version=released)
    with serving(tmp_path / "same") as device:
        same = skerry("parity", "digits", "--device", device.url, *BATCHES)
    assert same.code == 0
    assert "the device does not show its steps, so only its answers were compared" in same.output
    assert "debug = true" in same.output
    make_bundle(tmp_path / "other", version=released, shrink=f"{SHRINK} * np.float32(0.5)")
    with serving(tmp_path / "other") as device:
        ran = skerry("parity", "digits", "--device", device.url, "--batches", "1", "--json")
    assert ran.code == 1
    assert ran.json["shows_steps"] is False
    assert (ran.json["comparisons"][0]["first"]["step"]) == "answer"


@pytest.mark.slow
def test_a_device_that_refuses_what_the_cloud_answers_differs(
    skerry: Skerry, released: int, tmp_path: Path
) -> None:
    strict = (StepSpec(name="check.range", config={"min": 0, "max": 15.9}), *STEPS[1:])
    make_bundle(tmp_path, version=released, steps=strict, with_golden=False)
    bright = save_inputs(tmp_path / "bright.npz", image=np.full((2, 8, 8), 16, np.float32))
    with serving(tmp_path, debug=True) as device:
        ran = skerry(
            "parity", "digits", "--device", device.url, "--inputs", bright, "--batches", "1",
            "--json",
        )  # fmt: skip
    first = ran.json["comparisons"][0]["first"]
    assert (first["step"], first["differs"]) == ("check.range", "refused")
    assert "out_of_range" in first["detail"]


# ── inputs ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_inputs_of_a_file_and_of_a_dataset_join_the_golden_ones(
    skerry: Skerry, plane: Plane, released: int, tmp_path: Path
) -> None:
    dataset = plane.dataset()
    path = save_inputs(tmp_path / "more.npz", image=images(5, seed=9))
    ran = skerry(
        "parity", f"digits:{released}", "--inputs", path, "--inputs", dataset[:10], "--batches",
        "4", "--limit", "12", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.error
    assert ran.json["items"] == 12
    assert ran.json["comparisons"][0]["items"] == 12


@pytest.mark.slow
def test_items_that_are_refused_alone_are_left_out_of_batches(
    skerry: Skerry, released: int, tmp_path: Path
) -> None:
    path = save_inputs(tmp_path / "odd.npz", **{"input:image": images(2) * 100, "labels": [1, 2]})
    make_bundle(tmp_path / "device", version=released)
    with serving(tmp_path / "device", debug=True) as device:
        ran = skerry(
            "parity", "digits", "--device", device.url, "--inputs", path, *BATCHES, "--json"
        )
    assert ran.code == 0, ran.output
    alone = next(each for each in ran.json["comparisons"] if each["batch"] == 1)
    assert (alone["items"], alone["refused"]) == (5, 2)
    assert all(each["refused"] == 0 for each in ran.json["comparisons"] if each["batch"] > 1)


@pytest.mark.slow
def test_a_tolerance_can_be_named(skerry: Skerry, released: int, tmp_path: Path) -> None:
    make_bundle(tmp_path, version=released, shrink=f"{SHRINK} + np.float32(1e-3)")
    with serving(tmp_path, debug=True) as device:
        ask = ("parity", "digits", "--device", device.url, "--batches", "1")
        assert skerry(*ask).code == 1
        assert skerry(*ask, "--atol", "1").code == 0


# ── bad input ────────────────────────────────────────────────────────────────────────────────────


def test_a_model_or_version_that_is_not_there_is_named(skerry: Skerry, released: int) -> None:
    assert skerry("parity", "ghost").says("no model 'ghost'", "digits")
    assert skerry("parity", "digits:99").says("no version 99")
    assert skerry("parity", "digits:99", "--version", "1").says("two versions")


@pytest.mark.slow
def test_a_profile_without_a_release_is_named(
    skerry: Skerry, plane: Plane, released: int, tmp_path: Path
) -> None:
    assert skerry("parity", f"digits:{released}", "--profile", "pi").says(
        "no release for profile 'pi'", "this-machine"
    )
    make_bundle(tmp_path)
    two = plane.publish(tmp_path, profiles=("this-machine", "generic-x86-64"))
    assert skerry("parity", f"digits:{two}").says("generic-x86-64, this-machine", "--profile")


def test_a_device_that_does_not_answer_is_named(
    skerry: Skerry, tmp_path: Path, free_ports: Callable[[int], list[int]]
) -> None:
    (port,) = free_ports(1)
    assert skerry("parity", "digits", "--device", f"127.0.0.1:{port}").says(
        "no device answers", str(port)
    )
    assert skerry("parity", "digits", "--device", "ftp://x").says("not an address", "http://")
    assert skerry("parity", "digits", "--socket", tmp_path / "none.sock").says("none.sock")
    assert skerry("parity", "digits", "--agent", tmp_path).says("no agent runs", "skerry-agent run")
    assert skerry("parity", "digits", "--agent", tmp_path, "--device", "x").says("once")


@pytest.mark.slow
def test_a_device_of_another_version_is_refused(
    skerry: Skerry, released: int, tmp_path: Path
) -> None:
    make_bundle(tmp_path, version=77)
    with serving(tmp_path) as device:
        ran = skerry("parity", f"digits:{released}", "--device", device.url)
        assert ran.says("serves digits:77", f"asked for is digits:{released}")
        assert skerry("parity", "cats", "--device", device.url).says("cats", "served")
        assert skerry("parity", "digits", "--device", device.url).says("no version 77")


@pytest.mark.slow
def test_a_device_of_another_variant_is_refused(
    skerry: Skerry, released: int, tmp_path: Path
) -> None:
    make_bundle(tmp_path, version=released)
    about = {"profile": "this-machine", "models": {"digits": {"variant": "small/int8"}}}
    with serving(tmp_path, status=about) as device:
        ran = skerry("parity", "digits", "--socket", device.socket)
    assert ran.says("small/int8", "linear/fp32")


@pytest.mark.slow
def test_a_device_that_wants_a_token_gets_it_or_says_so(
    skerry: Skerry, released: int, tmp_path: Path
) -> None:
    make_bundle(tmp_path, version=released)
    with serving(tmp_path, token="a-token-of-some-length") as device:
        ask = ("parity", "digits", "--device", device.url, "--batches", "1")
        assert skerry(*ask).says("bearer token", "SKERRY_DEVICE_TOKEN")
        assert skerry(*ask, "--token", "a-token-of-some-length").code == 0


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"image": np.zeros((2, 9, 8), np.float32)}, "shape [2, 9, 8]"),
        ({"image": np.zeros((2, 8, 8), np.float64)}, "float64, expected FP32"),
        ({"picture": np.zeros((2, 8, 8), np.float32)}, "'image' is missing"),
        ({}, "holds no arrays"),
    ],
)
def test_inputs_that_do_not_fit_are_named(
    skerry: Skerry, released: int, tmp_path: Path, arrays: dict[str, object], part: str
) -> None:
    path = save_inputs(tmp_path / "given.npz", **arrays)
    ran = skerry("parity", f"digits:{released}", "--inputs", path)
    assert ran.says("given.npz", part), ran.error


@pytest.mark.slow
def test_inputs_that_are_nothing_are_named(skerry: Skerry, released: int, tmp_path: Path) -> None:
    ask = ("parity", f"digits:{released}", "--inputs")
    assert skerry(*ask, tmp_path / "none.npz").says("none.npz", "neither a file nor")
    assert skerry(*ask, "0123456789abcdef").says("no dataset version 0123456789abcdef")
    (tmp_path / "torn.npz").write_bytes(b"PK\3\4 no archive")
    assert skerry(*ask, tmp_path / "torn.npz").says("torn.npz", "cannot be read")


def test_options_that_make_no_sense_are_named(skerry: Skerry, released: int) -> None:
    ask = ("parity", f"digits:{released}")
    for text in ("0", "1,,2", "two", "5000", ""):
        assert skerry(*ask, "--batches", text).says("batches", "e.g. 1,2,8")
    assert skerry(*ask, "--atol", "-1").says("atol")
    assert skerry(*ask, "--atol", "inf").says("--atol must be a number")


def test_a_bundle_without_golden_inputs_says_what_to_do(
    skerry: Skerry, plane: Plane, tmp_path: Path
) -> None:
    make_bundle(tmp_path, with_golden=False)
    version = plane.publish(tmp_path)
    assert skerry("parity", f"digits:{version}").says("no golden inputs", "--inputs")


def test_a_bundle_that_does_not_open_here_says_so(
    skerry: Skerry, plane: Plane, tmp_path: Path
) -> None:
    manifest = make_bundle(tmp_path)
    network = manifest.network.model_copy(update={"runtime": "tensorrt"})
    (tmp_path / "manifest.json").write_bytes(
        manifest.model_copy(update={"network": network}).encode()
    )
    version = plane.publish(tmp_path)
    with contextlib.suppress(ImportError):
        import tensorrt  # noqa: F401

        pytest.skip("TensorRT is installed here")
    assert skerry("parity", f"digits:{version}").says("does not open on this machine", "tensorrt")
