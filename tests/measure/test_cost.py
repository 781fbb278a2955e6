"""The cost of a batch, on a virtual clock: pipelines whose a and b are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from edge_agent.measure import CostFit, fit_cost
from edge_agent.pipeline import Pipeline, Rejected, StepFailed, Tensors
from edge_agent.pipeline.pipeline import Result
from edge_agent.runtime import open_session
from edge_agent.wire.manifest import TensorSpec
from tests.runtime.networks import (
    IMAGE,
    LABEL,
    NETWORK,
    SCORES,
    STEPS,
    digits_pipeline,
    images,
    open_linear,
    write_dynamically_quantised,
)

SAMPLES = [{"x": np.full((1, 2), index, dtype=np.float32)} for index in range(64)]


def doubled(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return x * 2


@dataclass
class Known:
    """A pipeline that takes a·n + b µs on its own clock, times whatever `noise` says."""

    a_us: float
    b_us: float
    noise: Callable[[], float] = lambda: 1.0
    answer: Callable[[np.ndarray], np.ndarray] = doubled  # type: ignore[type-arg]
    extra_us: Callable[[int], float] = lambda n: 0.0
    fails_from: int = 10**9
    shape: tuple[int, ...] = (-1, 2)
    now_s: float = 0.0
    largest_run: int = 0
    sizes: list[int] = field(default_factory=list)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name="x", datatype="FP32", shape=self.shape),)

    def run(self, tensors: Tensors, *, trace: bool = False) -> Result:
        x = tensors["x"]
        n = len(x)
        self.sizes.append(n)
        if n >= self.fails_from:
            raise StepFailed("model", "out of memory")
        self.now_s += (self.a_us * n + self.b_us + self.extra_us(n)) * self.noise() / 1e6
        return Result({"y": self.answer(x)})

    def fit(self, samples: list[Tensors] = SAMPLES, **options: float | None) -> CostFit:
        return fit_cost(self, samples, clock=lambda: self.now_s, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("a_us", "b_us"), [(7, 30), (40, 900), (0.5, 20), (300, 3000)])
def test_a_line_is_found_exactly_on_a_quiet_machine(a_us: float, b_us: float) -> None:
    cost = Known(a_us, b_us).fit().cost
    assert cost.per_item_us == pytest.approx(a_us)
    assert cost.fixed_us == pytest.approx(b_us)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("a_us", "b_us"), [(7, 60), (40, 900), (0.5, 20)])
def test_a_line_is_found_within_5_percent_on_a_noisy_machine(
    a_us: float, b_us: float, seed: int
) -> None:
    """5 % of jitter, every twelfth run interrupted, and a machine that slows down by a tenth."""
    generator = np.random.default_rng(seed)
    runs = iter(range(10**9))

    def noise() -> float:
        interrupted = 8.0 if generator.random() < 1 / 12 else 1.0
        slower = 1.0 + 0.1 * min(1.0, next(runs) / 5000)
        return max(0.5, generator.normal(1.0, 0.05)) * interrupted * slower

    cost = Known(a_us, b_us, noise).fit().cost
    assert cost.per_item_us == pytest.approx(a_us * 1.05, rel=0.08)
    assert cost.fixed_us == pytest.approx(b_us * 1.05, rel=0.08)


@pytest.mark.parametrize("seed", range(8))
def test_jitter_alone_moves_the_line_by_less_than_5_percent(seed: int) -> None:
    generator = np.random.default_rng(seed)
    cost = Known(10, 100, lambda: max(0.5, generator.normal(1.0, 0.05))).fit().cost
    assert cost.per_item_us == pytest.approx(10, rel=0.05)
    assert cost.fixed_us == pytest.approx(100, rel=0.05)


def test_the_batch_grows_while_it_pays() -> None:
    # 1 → 2 saves a quarter, 2 → 4 a sixth, 4 → 8 a tenth, 8 → 16 is 5.6 %, 16 → 32 is 2.9 %
    fit = Known(100, 100).fit()
    assert fit.cost.max_batch == 16
    assert "a batch of 32 answers +3% items per second against 16" in fit.reason
    assert fit.note == ""
    assert set(fit.batch_us) == {1, 2, 4, 8, 16, 32}


def test_a_network_that_gains_to_the_end_stops_at_the_largest_size_tried() -> None:
    fit = Known(1, 1000).fit()
    assert fit.cost.max_batch == 64
    assert "largest size" in fit.reason


def test_a_network_that_gains_nothing_is_run_item_by_item() -> None:
    cost = Known(100, 0).fit().cost
    assert cost.max_batch == 1
    assert cost.per_item_us == pytest.approx(100)
    assert cost.fixed_us == 0


def test_a_cliff_ends_the_growth_and_stays_out_of_the_line() -> None:
    fit = Known(10, 100, extra_us=lambda n: 5000.0 if n >= 16 else 0.0).fit()
    assert fit.cost.max_batch == 8
    assert fit.cost.per_item_us == pytest.approx(10)
    assert fit.cost.fixed_us == pytest.approx(100)


def test_a_batch_keeps_within_the_latency_it_may_take() -> None:
    # a batch of 8 takes 1.8 ms, one of 16 takes 2.6 ms
    fit = Known(100, 1000).fit(max_batch_ms=2.0)
    assert fit.cost.max_batch == 8
    assert fit.reason == "a batch of 16 takes 2.6 ms, allowed is 2 ms"


def test_an_item_that_is_too_slow_alone_is_not_batched() -> None:
    fit = Known(100, 1000).fit(max_batch_ms=0.5)
    assert fit.cost.max_batch == 1
    assert fit.reason == "1 item takes 1.1 ms, allowed is 0.5 ms"


def test_what_does_not_fit_into_the_time_is_not_begun() -> None:
    pipeline = Known(50_000, 100_000)
    fit = pipeline.fit(budget_s=3.0)
    assert fit.reason == "batches of 4 would not fit into the time to measure"
    assert fit.cost.max_batch == 2
    assert fit.cost.fixed_us == pytest.approx(100_000)
    assert pipeline.now_s < 3.0 + 0.6  # one round more than fits, at most


def test_a_very_slow_network_is_still_timed() -> None:
    pipeline = Known(3_000_000, 0)
    cost = pipeline.fit().cost
    assert cost.per_item_us == pytest.approx(3_000_000)
    assert cost.max_batch == 1
    assert max(pipeline.sizes) == 1


def test_a_step_that_mixes_the_items_of_a_batch_forbids_batches() -> None:
    def centred(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return x - x.mean(axis=0)

    fit = Known(10, 100, answer=centred).fit()
    assert fit.cost.max_batch == 1
    assert fit.note.startswith("batches are not made: answers depend on the batch: in a batch of 2")
    assert "'y' differs by" in fit.note
    assert fit.cost.per_item_us == pytest.approx(10)  # the figures hold all the same
    assert fit.cost.fixed_us == pytest.approx(100)


def test_a_difference_within_the_tolerance_is_none() -> None:
    def shaken(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return x + np.float32(1e-3) * len(x)

    assert Known(1, 1000, answer=shaken).fit(atol=1.0).cost.max_batch == 64
    assert Known(1, 1000, answer=shaken).fit(atol=1e-4).cost.max_batch == 1


@pytest.mark.parametrize("size", [3, 5, 15])
def test_an_odd_batch_that_is_answered_otherwise_forbids_batches(size: int) -> None:
    def odd(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return x + (len(x) == size)

    fit = Known(10, 1000, answer=odd).fit()
    assert fit.cost.max_batch == 1
    assert f"in a batch of {size}, output 'y' differs by 1," in fit.note


def test_an_item_that_changes_others_only_by_its_size_forbids_batches() -> None:
    def scaled_by_the_largest(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return x / max(20, x.max())

    fit = Known(10, 1000, answer=scaled_by_the_largest).fit()
    assert fit.cost.max_batch == 1
    assert "answers depend on the batch" in fit.note


@pytest.mark.parametrize("offset", [0, 1e6])
def test_the_rounding_of_another_order_of_sums_is_no_difference(offset: float) -> None:
    """It is in proportion to the largest value, also where values cancel out."""
    largest = 63 + offset

    def rounded(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        away = largest * 1e-6 * (len(x) > 1)
        return np.stack([x[:, 0] + offset, x[:, 1] + offset], 1) + away

    assert Known(1, 1000, answer=rounded).fit().cost.max_batch == 64


def test_a_network_that_cannot_take_a_batch_is_run_item_by_item() -> None:
    fit = Known(10, 100, fails_from=2).fit()
    assert fit.cost.max_batch == 1
    assert "a batch of 2 is not answered" in fit.note
    assert "out of memory" in fit.note


def test_a_fixed_batch_axis_is_timed_at_its_size_and_never_joined() -> None:
    pipeline = Known(10, 20, shape=(4, 2))
    fit = pipeline.fit()
    assert fit.cost.max_batch == 1
    assert fit.cost.per_item_us == pytest.approx(15)
    assert set(pipeline.sizes) == {4}
    assert fit.reason == "the interface fixes the batch axis at 4"


def test_without_samples_nothing_is_measured() -> None:
    with pytest.raises(ValueError, match="no samples"):
        Known(1, 1).fit([])


def test_a_real_network_is_fitted(tmp_path: Path) -> None:
    samples = [{"image": images(1, seed)} for seed in range(8)]
    fit = fit_cost(digits_pipeline(tmp_path), samples, budget_s=0.3)
    assert fit.note == ""
    assert fit.cost.max_batch >= 2
    assert fit.cost.per_item_us + fit.cost.fixed_us > 0


@pytest.mark.parametrize("outputs", [(SCORES, LABEL), (LABEL,)])
def test_a_network_that_takes_its_scale_from_the_batch_is_run_item_by_item(
    tmp_path: Path, outputs: tuple[TensorSpec, ...]
) -> None:
    """Labels flip once in some hundred items only, so what the network answers counts too."""
    network = open_session(write_dynamically_quantised(tmp_path / "model.onnx"), NETWORK)
    pipeline = Pipeline(STEPS, network, (IMAGE,), outputs)
    brightness = np.random.default_rng(0).uniform(0.2, 1, size=64)
    samples = [
        {"image": images(1, seed) * np.float32(factor)} for seed, factor in enumerate(brightness)
    ]
    fit = fit_cost(pipeline, samples, budget_s=0.3)
    pipeline.close()
    assert fit.cost.max_batch == 1
    assert "answers depend on the batch: in a batch of 2" in fit.note


def test_a_real_network_with_a_fixed_batch_is_measured_as_it_is(tmp_path: Path) -> None:
    fixed = IMAGE.model_copy(update={"shape": (1, 8, 8)})
    pipeline = Pipeline(STEPS, open_linear(tmp_path), (fixed,), (SCORES, LABEL))
    assert fit_cost(pipeline, [{"image": images(1)}], budget_s=0.1).cost.max_batch == 1


def test_a_sample_that_is_rejected_stops_the_fit(tmp_path: Path) -> None:
    with pytest.raises(Rejected):
        fit_cost(digits_pipeline(tmp_path), [{"image": images(1) * 100}])
