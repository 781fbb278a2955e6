from __future__ import annotations

import numpy as np
import pytest

from edge_agent.pipeline import Array, Rejected, StepConfigError, Tensors, registered
from edge_agent.pipeline.builtin import (
    check_blur,
    check_brightness,
    check_energy,
    check_finite,
    check_outlier,
    check_range,
    check_shape,
)
from edge_agent.pipeline.checkers import energy, sharpness
from edge_agent.pipeline.outlier import MAX_FEATURES, Gaussian, features, fit
from edge_agent.pipeline.steps import bind
from edge_agent.wire.manifest import StepSpec


def test_a_range_includes_its_ends_and_excludes_nan() -> None:
    check_range({"x": np.array([0.0, 16.0])}, min=0, max=16)
    for value in (-0.1, 16.1, np.nan):
        with pytest.raises(Rejected, match="out_of_range"):
            check_range({"x": np.array([1.0, value])}, min=0, max=16)


def test_checks_look_at_the_named_tensor_only() -> None:
    tensors = {"x": np.array([1.0]), "y": np.array([np.inf])}
    check_finite(tensors, tensor="x")
    check_range(tensors, min=0, max=2, tensor="x")
    with pytest.raises(Rejected):
        check_finite(tensors)


def test_checks_of_numbers_pass_over_text() -> None:
    tensors: Tensors = {"text": np.array([b"a"], object), "x": np.array([[1.0]])}
    check_range(tensors, min=0, max=2)
    check_brightness(tensors, min=0, max=2)
    check_finite(tensors)


@pytest.mark.parametrize("shape", [[2, 3], [-1, 3], [2, -1]])
def test_a_shape_may_leave_axes_open(shape: list[int]) -> None:
    check_shape({"x": np.zeros((5, 2, 3))}, shape=shape)


@pytest.mark.parametrize("shape", [[3, 2], [2], [2, 3, 1], [-1, 2], []])
def test_an_item_of_another_shape_is_refused(shape: list[int]) -> None:
    with pytest.raises(Rejected) as caught:
        check_shape({"x": np.zeros((5, 2, 3))}, shape=shape)
    assert caught.value.reason == "wrong_shape"


@pytest.mark.parametrize(
    ("value", "reason"),
    [(9.0, "too_dark"), (201.0, "too_bright"), (np.nan, "too_dark")],
)
def test_one_item_that_is_too_dark_or_bright_is_enough(value: float, reason: str) -> None:
    x = np.full((3, 4, 4), 100.0)
    check_brightness({"x": x}, min=10, max=200)
    x[1] = value
    with pytest.raises(Rejected) as caught:
        check_brightness({"x": x}, min=10, max=200)
    assert caught.value.reason == reason


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    image = np.random.default_rng(0).uniform(0, 255, (6, 7))
    laplacian = [
        image[r - 1, c] + image[r + 1, c] + image[r, c - 1] + image[r, c + 1] - 4 * image[r, c]
        for r in range(1, 5)
        for c in range(1, 6)
    ]
    assert sharpness(image[None])[0] == pytest.approx(np.var(laplacian), rel=1e-5)


def test_colour_is_judged_by_luma_in_either_layout() -> None:
    image = np.random.default_rng(0).uniform(0, 255, (2, 6, 7, 3))
    luma = image @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(sharpness(image), sharpness(luma), rtol=1e-4)
    np.testing.assert_allclose(sharpness(image.transpose(0, 3, 1, 2), "CHW"), sharpness(image))


def test_a_blurred_image_is_refused() -> None:
    sharp = np.indices((8, 8)).sum(axis=0)[None] % 2 * 255.0
    check_blur({"x": sharp}, min=1000)
    for blurred in (sharp * 0 + 7, sharp * np.nan, np.ones((1, 2, 2))):
        with pytest.raises(Rejected, match="blurred"):
            check_blur({"x": blurred}, min=1000)


def test_blur_of_something_else_than_images_is_the_engineer_s_fault() -> None:
    with pytest.raises(ValueError, match=r"3 or 4 axes, not the shape \[2, 5\]"):
        check_blur({"x": np.ones((2, 5))}, min=1)


def test_energy_is_minus_the_log_of_the_summed_exponents() -> None:
    logits = np.array([[1.0, 2.0, -1.0], [700.0, 0.0, 0.0]])
    expected = [-np.log(np.exp(logits[0]).sum()), -700]
    np.testing.assert_allclose(energy(logits), expected)
    np.testing.assert_allclose(energy(logits, 2.0)[1], -700)


def test_a_network_that_is_sure_of_nothing_is_not_believed() -> None:
    check_energy({"logits": np.array([[9.0, 0.0]])}, max=-5)
    for row in ([0.0, 0.0], [np.nan, 9.0], [np.inf, np.inf], [-np.inf, -np.inf]):
        with pytest.raises(Rejected, match="out_of_distribution"):
            check_energy({"logits": np.array([[9.0, 0.0], row])}, max=-5)


def trained(count: int = 400) -> Array:
    """Images [n, 6, 6] with little contrast."""
    return np.random.default_rng(1).normal(100, 10, (count, 6, 6))


def test_the_distance_is_mahalanobis() -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 3))
    difference = rows - rows.mean(axis=0)
    expected = np.sqrt(
        np.einsum("ij,jk,ik->i", difference, np.linalg.inv(np.cov(rows.T)), difference)
    )
    np.testing.assert_allclose(fit(rows, "values").distance(rows), expected, rtol=1e-3)


@pytest.mark.parametrize(
    "unlike",
    [
        pytest.param(lambda x: x + 60, id="brighter"),
        pytest.param(lambda x: 100 + (x - 100) * 6, id="more contrast"),
        pytest.param(lambda x: x * 0 + 100, id="blank"),
        pytest.param(lambda x: x * np.nan, id="nan"),
    ],
)
def test_what_is_unlike_the_training_data_is_refused(unlike: object) -> None:
    reference = fit(trained())
    most = float(np.quantile(reference.distance(trained()), 0.999))
    typical = trained()[:1]
    check_outlier({"x": typical}, reference=reference, max=most)
    with pytest.raises(Rejected) as caught:
        check_outlier({"x": unlike(typical)}, reference=reference, max=most)  # type: ignore[operator]
    assert caught.value.reason == "out_of_distribution"


def test_a_feature_that_never_varied_still_counts() -> None:
    rows = np.random.default_rng(3).normal(size=(40, 3))
    rows[:, 1] = 5.0
    reference = fit(rows, "values")
    usual, odd = rows[:1].copy(), rows[:1].copy()
    odd[0, 1] = 5.5
    assert reference.distance(odd)[0] > 10 * reference.distance(usual)[0]


def test_a_reference_survives_the_project_file() -> None:
    config = {"reference": fit(trained()).model_dump(), "max": 6.0}
    step = bind(StepSpec(name="check.outlier", config=config), registered())
    step.call({"x": trained()[:3]})
    with pytest.raises(Rejected):
        step.call({"x": trained()[:3] * 0})


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"mean": [0.0, 1.0], "covariance": [[1.0]]}, "must be 2×2"),
        ({"mean": [0.0, 1.0], "covariance": [[1.0, 0.5], [0.0, 1.0]]}, "symmetric"),
        ({"mean": [0.0, 1.0], "covariance": [[1.0, 2.0], [2.0, 1.0]]}, "positive semidefinite"),
        ({"mean": [0.0], "covariance": [[-1.0]]}, "negative variance"),
        ({"mean": [0.0] * 65, "covariance": [[1.0]]}, "at most 64"),
        ({"mean": [0.0], "covariance": [[1.0]], "size": 3}, "not permitted"),
    ],
)
def test_a_reference_that_is_none_is_refused_when_it_is_bound(
    reference: dict[str, object], message: str
) -> None:
    spec = StepSpec.model_validate(
        {"name": "check.outlier", "config": {"reference": reference, "max": 3}}
    )
    with pytest.raises(StepConfigError, match=message):
        bind(spec, registered())


def test_features_are_bounded_and_agree_with_the_reference() -> None:
    assert features(np.ones((2, 100, 100)), "summary").shape == (2, 10)
    with pytest.raises(ValueError, match="at most 64; take the summary"):
        features(np.ones((2, MAX_FEATURES + 1)), "values")
    with pytest.raises(ValueError, match="an item has 2 features, mean has 3"):
        fit(np.random.default_rng(0).normal(size=(9, 3)), "values").distance(np.ones((1, 2)))


@pytest.mark.parametrize(
    ("rows", "message"),
    [(np.ones((3, 3)), "3 items are too few"), (np.full((9, 3), np.nan), "NaN")],
)
def test_a_reference_of_too_little_is_refused(rows: Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(rows, "values")


def test_a_gaussian_of_one_feature_is_a_z_score() -> None:
    reference = Gaussian(features="values", mean=[10.0], covariance=[[4.0]])
    np.testing.assert_allclose(reference.distance(np.array([[10.0], [16.0]])), [0, 3], rtol=1e-5)
