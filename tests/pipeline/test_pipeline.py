from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from edge_agent.pipeline import (
    Array,
    InputError,
    Pipeline,
    Rejected,
    Request,
    Step,
    StepConfigError,
    StepFailed,
    Tensors,
    UnknownStep,
)
from edge_agent.runtime import ModelNotLoadable, Provenance
from edge_agent.wire.manifest import StepSpec, TensorSpec
from tests.runtime.networks import (
    IMAGE,
    LABEL,
    SCORES,
    STEPS,
    digits_pipeline,
    images,
    write_bundle,
)

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
Y = TensorSpec(name="y", datatype="FP32", shape=(-1, 2))


class Doubler:
    """A session that needs no runtime: y = 2x."""

    provenance = Provenance("none", "0", "CPU", "fp32", 1)

    def __init__(self) -> None:
        self.closed = 0

    def run(self, tensors: Mapping[str, Array]) -> Tensors:
        return {"y": tensors["x"] * np.float32(2)}

    def close(self) -> None:
        self.closed += 1


def doubling(*steps: StepSpec, outputs: tuple[TensorSpec, ...] = (Y,)) -> Pipeline:
    return Pipeline(steps or (StepSpec(name="model"),), Doubler(), (X,), outputs)


def ones(count: int = 1) -> dict[str, Array]:
    return {"x": np.ones((count, 2), np.float32)}


def test_steps_run_in_order_around_the_network(tmp_path: Path) -> None:
    pipeline = digits_pipeline(tmp_path)
    x = images(5)
    result = pipeline.run({"image": x})
    weights = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    logits = (x / 16).reshape(5, 64) @ weights
    assert list(result.tensors) == ["scores", "label"]
    np.testing.assert_array_equal(result.tensors["label"], logits.argmax(axis=1))
    np.testing.assert_allclose(result.tensors["scores"].sum(axis=1), 1, rtol=1e-5)
    assert result.steps == []


def test_a_trace_shows_the_tensors_after_each_step(tmp_path: Path) -> None:
    trace = digits_pipeline(tmp_path).run({"image": images(1)}, trace=True).steps
    assert [name for name, _ in trace] == [spec.name for spec in STEPS]
    assert [list(tensors) for _, tensors in trace] == [
        [], [], ["image"], ["x"], ["logits"], ["scores", "label"],
    ]  # fmt: skip


def test_outputs_are_those_of_the_interface_only() -> None:
    assert list(doubling().run(ones()).tensors) == ["y"]


def test_a_checker_rejects_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(Rejected) as caught:
        digits_pipeline(tmp_path).run({"image": images(1) + 17})
    assert caught.value.reason == "out_of_range"
    assert str(caught.value) == "out_of_range: 'image' leaves [0, 16]"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_rejected(bad: float, tmp_path: Path) -> None:
    x = images(2)
    x[1, 3, 3] = bad
    with pytest.raises(Rejected, match="not_finite"):
        digits_pipeline(tmp_path).run({"image": x})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "input 'image' is missing"),
        ({"image": np.zeros((1, 8, 8))}, "input 'image' is float64, expected FP32"),
        ({"image": np.zeros((1, 8), "f4")}, r"shape \[1, 8\], expected \[-1, 8, 8\]"),
        ({"image": np.zeros((1, 8, 9), "f4")}, r"shape \[1, 8, 9\], expected \[-1, 8, 8\]"),
        ({"image": np.zeros((0, 8, 8), "f4")}, "holds no items"),
        ({"image": np.zeros((1, 8, 8), "f4").tolist()}, "input 'image' is list, no array"),
        ({"image": np.float32(1)}, "input 'image' is float32, no array"),
        (
            {"image": np.zeros((1, 8, 8), "f4"), "imgae": np.zeros((1, 8, 8), "f4")},
            "unknown input 'imgae'; did you mean 'image'",
        ),
    ],
)
def test_unfit_inputs_are_refused(tensors: dict[str, Array], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        digits_pipeline(tmp_path).run(tensors)


def test_all_inputs_share_one_batch_size() -> None:
    a, b = (TensorSpec(name=name, datatype="FP32", shape=(-1, 2)) for name in "xz")
    pipeline = Pipeline((StepSpec(name="model"),), Doubler(), (a, b), (Y,))
    with pytest.raises(InputError, match="input 'z' holds 3 items, others 2"):
        pipeline.run({"x": np.ones((2, 2), "f4"), "z": np.ones((3, 2), "f4")})


def test_an_unknown_step_names_the_nearest() -> None:
    with pytest.raises(UnknownStep, match="unknown step 'clasify'; did you mean 'classify'"):
        doubling(StepSpec(name="model"), StepSpec(name="clasify"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"facter": 2}, "step 'scale': unknown key 'facter'; did you mean 'factor'?"),
        ({}, "step 'scale': key 'factor' is missing"),
        ({"factor": "two"}, "step 'scale': key 'factor': Input should be a valid number"),
        ({"factor": True}, "step 'scale': key 'factor': Input should be a valid number"),
    ],
)
def test_a_wrong_config_is_refused_when_the_pipeline_is_made(
    config: dict[str, float], message: str
) -> None:
    with pytest.raises(StepConfigError) as caught:
        doubling(StepSpec(name="scale", config=config), StepSpec(name="model"))
    assert str(caught.value) == message


@pytest.mark.parametrize("count", [0, 2])
def test_the_network_stands_exactly_once(count: int) -> None:
    with pytest.raises(StepConfigError, match="must stand once"):
        doubling(StepSpec(name="scale", config={"factor": 1}), *[StepSpec(name="model")] * count)


def test_a_service_stands_behind_the_network() -> None:
    with pytest.raises(StepConfigError, match="behind the model"):
        doubling(StepSpec(name="classify"), StepSpec(name="model"))


def test_a_missing_output_names_what_there_is() -> None:
    pipeline = doubling(outputs=(SCORES,))
    with pytest.raises(StepFailed, match="output 'scores' is missing; there is y"):
        pipeline.run(ones())


def test_an_output_of_another_type_fails() -> None:
    wrong = Y.model_copy(update={"datatype": "FP64"})
    with pytest.raises(StepFailed, match="output 'y' is float32, the manifest says FP64"):
        doubling(outputs=(wrong,)).run(ones())


def test_a_step_that_raises_is_named() -> None:
    steps = (StepSpec(name="model"), StepSpec(name="classify", config={"logits": "nope"}))
    with pytest.raises(StepFailed, match="step 'classify' failed: KeyError"):
        doubling(*steps).run(ones())


def test_a_step_that_ends_the_interpreter_fails_alone() -> None:
    def leave(tensors: Tensors) -> Tensors:
        raise SystemExit(3)

    registry = {"leave": Step("leave", "processor", leave)}
    steps = (StepSpec(name="leave"), StepSpec(name="model"))
    with pytest.raises(StepFailed, match="step 'leave' failed: SystemExit: 3"):
        Pipeline(steps, Doubler(), (X,), (Y,), registry=registry).answer(ones())


def serving(give: Callable[[Array], object], spec: TensorSpec = Y) -> Pipeline:
    registry = {"give": Step("give", "service", lambda tensors: {"y": give(tensors["y"])})}  # type: ignore[dict-item]
    steps = (StepSpec(name="model"), StepSpec(name="give"))
    return Pipeline(steps, Doubler(), (X,), (spec,), registry=registry)


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda y: y.mean(axis=0, keepdims=True), r"has shape \[1, 2\] for a batch of 3"),
        (lambda y: y[:0], r"has shape \[0, 2\] for a batch of 3"),
        (lambda y: y.max(), r"has shape \[\], the manifest says \[-1, 2\]"),
        (lambda y: y[:, None], r"has shape \[3, 1, 2\], the manifest says \[-1, 2\]"),
        (lambda y: y.tolist(), "is list, no array"),
        (lambda y: None, "is NoneType, no array"),
    ],
)
def test_an_answer_has_as_many_items_as_the_question(
    give: Callable[[Array], object], message: str
) -> None:
    with pytest.raises(StepFailed, match="step 'give' failed: output 'y' " + message):
        serving(give).run(ones(3))


def test_an_output_whose_leading_axis_is_fixed_need_not_follow_the_batch() -> None:
    fixed = Y.model_copy(update={"shape": (1, 2)})
    answer = serving(lambda y: y.mean(axis=0, keepdims=True), fixed).run(ones(3))
    assert answer.tensors["y"].shape == (1, 2)


def test_the_caller_s_tensors_stay_as_they_were(tmp_path: Path) -> None:
    x = images(2)
    x.setflags(write=False)  # as the views of a request are
    before = x.copy()
    digits_pipeline(tmp_path).run({"image": x})
    np.testing.assert_array_equal(x, before)


def test_closing_twice_closes_the_network_once() -> None:
    session = Doubler()
    pipeline = Pipeline((StepSpec(name="model"),), session, (X,), (Y,))
    pipeline.close()
    pipeline.close()
    assert session.closed == 1


def test_a_bundle_opens_with_its_code_and_network(tmp_path: Path) -> None:
    code = {
        "steps.py": (
            "from edge_agent.pipeline import processor\n"
            "@processor('digits.prepare')\n"
            "def prepare(tensors, *, full: float = 16.0):\n"
            "    return {'x': tensors['image'] / type(tensors['image'].flat[0])(full)}\n"
        )
    }
    steps = (StepSpec(name="digits.prepare"), StepSpec(name="model"), StepSpec(name="classify"))
    manifest = write_bundle(tmp_path / "own", code=code, steps=steps)
    write_bundle(tmp_path / "builtin")
    own = Pipeline.open(tmp_path / "own", manifest).run({"image": images(4)})
    assert own.tensors["scores"].shape == (4, 10)
    assert not list((tmp_path / "own").rglob("__pycache__"))


def test_a_bundle_without_its_network_is_refused(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path)
    (tmp_path / "model.onnx").unlink()
    with pytest.raises(ModelNotLoadable, match="no such file"):
        Pipeline.open(tmp_path, manifest)


def test_bfloat16_is_float32_inside(tmp_path: Path) -> None:
    x, y = (spec.model_copy(update={"datatype": "BF16"}) for spec in (X, Y))
    pipeline = Pipeline((StepSpec(name="model"),), Doubler(), (x,), (y,))
    assert pipeline.run(ones()).tensors["y"].dtype == np.float32
    with pytest.raises(InputError, match="input 'x' is float16, expected BF16"):
        pipeline.run({"x": np.ones((1, 2), np.float16)})


def test_a_request_for_debugging_keeps_every_step(tmp_path: Path) -> None:
    pipeline = digits_pipeline(tmp_path)
    x = images(2)
    plain, debug = Request({"image": x}), Request({"image": x}, debug=True)
    answer = pipeline.process(plain)
    np.testing.assert_array_equal(pipeline.process(debug)["scores"], answer["scores"])
    assert plain.steps == []
    assert [name for name, _ in debug.steps] == [spec.name for spec in STEPS]
    assert list(debug.tensors) == ["image"]
    pipeline.process(debug)
    assert len(debug.steps) == len(STEPS)  # those of the last time only


def test_a_refused_request_shows_the_steps_that_it_passed(tmp_path: Path) -> None:
    request = Request({"image": images(1) + 17}, debug=True)
    with pytest.raises(Rejected):
        digits_pipeline(tmp_path).process(request)
    assert [name for name, _ in request.steps] == ["check.finite"]


def test_an_answer_without_validation_is_the_same(tmp_path: Path) -> None:
    pipeline = digits_pipeline(tmp_path)
    x = {"image": images(3)}
    expected = pipeline.run(x).tensors
    actual = pipeline.answer(x)
    assert list(actual) == ["scores", "label"]
    np.testing.assert_array_equal(actual["scores"], expected["scores"])


def test_a_step_that_writes_into_the_dict_leaves_the_caller_s_alone() -> None:
    def overwrite(tensors: Tensors) -> Tensors:
        tensors["x"] = tensors.pop("x") * 3
        return tensors

    registry = {"overwrite": Step("overwrite", "processor", overwrite)}
    steps = (StepSpec(name="overwrite"), StepSpec(name="model"))
    pipeline = Pipeline(steps, Doubler(), (X,), (Y,), registry=registry)
    tensors = ones()
    np.testing.assert_array_equal(pipeline.answer(tensors)["y"], [[6, 6]])
    np.testing.assert_array_equal(tensors["x"], [[1, 1]])


def test_a_step_that_returns_nothing_is_named() -> None:
    registry = {"lost": Step("lost", "processor", lambda tensors: None)}
    steps = (StepSpec(name="lost"), StepSpec(name="model"))
    with pytest.raises(StepFailed, match="step 'lost' failed: returned NoneType, not tensors"):
        Pipeline(steps, Doubler(), (X,), (Y,), registry=registry).answer(ones())


def test_an_input_may_be_carried_past_the_network() -> None:
    seen = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
    carrying = StepSpec(name="model", config={"carry": ["x"]})
    answer = doubling(carrying, outputs=(Y, seen)).run(ones()).tensors
    np.testing.assert_array_equal(answer["x"], [[1, 1]])
    np.testing.assert_array_equal(answer["y"], [[2, 2]])
    with pytest.raises(StepFailed, match="step 'model' failed: KeyError: 'z'"):
        doubling(StepSpec(name="model", config={"carry": ["z"]})).run(ones())
    with pytest.raises(StepConfigError, match="unknown key 'cary'; did you mean 'carry'"):
        doubling(StepSpec(name="model", config={"cary": ["x"]}))


def test_the_interface_is_readable(tmp_path: Path) -> None:
    pipeline = digits_pipeline(tmp_path)
    assert pipeline.inputs == (IMAGE,)
    assert pipeline.outputs == (SCORES, LABEL)
    assert len(STEPS) == 6
