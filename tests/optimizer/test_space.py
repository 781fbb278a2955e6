from __future__ import annotations

from edge_agent.wire.manifest import StepSpec
from optimizer.profiles import Host, load_profile
from optimizer.space import USUAL, Axes, Choice, Point, grid, labels, parse_name, place_of

FOUR = load_profile("this-machine", host=Host("x86_64", frozenset({"avx2"}), 4, 8000))
FP32 = Choice(StepSpec(name="fp32"), ("onnxruntime", "openvino"), "fp32")


def names(axes: Axes, *, rate: bool = False) -> list[str]:
    points = grid(FOUR, ["small"], [FP32], axes, rate=rate)
    return [point.name("onnxruntime", FOUR.model_threads) for point in points]


def test_the_usual_points_have_plain_names() -> None:
    assert names(USUAL, rate=True) == ["small/fp32"]


def test_names_say_what_differs_from_the_usual() -> None:
    assert names(Axes()) == [
        "small/fp32", "small/fp32@t1", "small/fp32@t2",
        "small/fp32@openvino", "small/fp32@openvino-t1", "small/fp32@openvino-t2",
    ]  # fmt: skip


def test_instances_are_varied_where_a_rate_is_asked_for_and_cores_allow() -> None:
    assert names(Axes(other_runtimes=False), rate=True) == [
        "small/fp32", "small/fp32@t1", "small/fp32@t1-i2", "small/fp32@t1-i4",
        "small/fp32@t2", "small/fp32@t2-i2",
    ]  # fmt: skip


def test_a_runtime_that_the_profile_lacks_is_no_point() -> None:
    pi = FOUR.model_copy(update={"runtimes": ("onnxruntime",)})
    points = grid(pi, ["small"], [FP32], Axes(threads=()), rate=False)
    assert [point.runtime for point in points] == ["onnxruntime"]


def test_configs_of_one_recipe_are_told_apart_by_name() -> None:
    steps = [
        StepSpec(name="ort-int8"),
        StepSpec(name="ort-int8", config={"rows": 64, "per_channel": False}),
        StepSpec(name="ort-int8", config={"exclude": ["a/b", "c"]}),
        StepSpec(name="ort-int8"),
    ]
    found = labels(steps)
    assert found[:2] == ["ort-int8", "ort-int8+per_channel=false+rows=64"]
    assert len(set(found)) == 4
    assert all("/" not in label and " " not in label for label in found)


def test_a_name_can_be_read_back() -> None:
    point = Point("small", StepSpec(name="ort-int8"), "openvino", 1, 2, "ort-int8+rows=64")
    name = point.name("onnxruntime", 4)
    assert name == "small/ort-int8+rows=64@openvino-t1-i2"
    assert parse_name(name) == ("small", "ort-int8", "ort-int8+rows=64")
    assert place_of(name) == "small-ort-int8+rows=64@openvino-t1-i2"
