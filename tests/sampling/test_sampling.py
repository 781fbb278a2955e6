"""What is kept, with what probability, under which budget, and what privacy takes out."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import zstandard

from edge_agent.runtime import Tensors
from edge_agent.sampling import Sampler, UnknownHook, privacy_hook
from edge_agent.sampling.budget import BURST_MINUTES, REMEMBERED_S, SHARES, ByteBudget
from edge_agent.sampling.items import Ring
from edge_agent.sampling.policy import Decision, normalised_entropy
from edge_agent.sampling.privacy import Privacy, PrivacyError
from edge_agent.sampling.sampler import QUEUED_BYTES
from edge_agent.wire.base import unpack_frame
from edge_agent.wire.manifest import Manifest, ModelSpec, SamplingSpec, StepSpec, TensorSpec
from edge_agent.wire.messages import Correction
from edge_agent.wire.samples import MAX_SAMPLE_BYTES, SampleHeader

IMAGE = TensorSpec(name="image", datatype="FP32", shape=(-1, 8, 8))


def manifest(sampling: SamplingSpec | None = None, privacy: tuple[StepSpec, ...] = ()) -> Manifest:
    return Manifest(
        model="digits", version=3, profile="p", variant="v", inputs=(IMAGE,), outputs=(),
        labels=tuple("0123456789"), pipeline=(),
        network=ModelSpec(runtime="onnxruntime", file="m.onnx", inputs=(), outputs=()),
        sampling=sampling or SamplingSpec(uniform_rate=1.0), privacy=privacy, files=(),
    )  # fmt: skip


@dataclass
class Journal:
    rows: list[tuple[str, bytes]] = field(default_factory=list)
    used_bytes: int = 0

    def append(self, kind, payload):
        self.rows.append((kind, payload))
        return len(self.rows)

    def samples(self) -> list[tuple[SampleHeader, bytes]]:
        return [
            (header, zstandard.ZstdDecompressor().stream_reader(io.BytesIO(bytes(body))).read())
            for kind, payload in self.rows
            if kind == "sample"
            for header, body in [unpack_frame(payload, SampleHeader)]
        ]


@dataclass
class Prediction:
    prediction_id: str
    manifest: Manifest
    inputs: Tensors
    outputs: Tensors
    items: int


def prediction(of: Manifest, *, name: str = "p", n: int = 1, best: int = 7, sure: float = 0.9):
    scores = np.full((n, 10), (1 - sure) / 9, np.float32)
    scores[:, best] = sure
    image = np.arange(n * 64, dtype=np.float32).reshape(n, 8, 8)
    return Prediction(
        name, of, {"image": image}, {"scores": scores, "label": np.full(n, best, np.int64)}, n
    )


@pytest.fixture
def sampled():
    """Run predictions through a sampler; returns its journal when it has written all."""

    def run(predictions, **options):
        journal = options.pop("journal", None) or Journal()
        sampler = Sampler(journal, key=b"k" * 32, rng=random.Random(1), **options)
        for each in predictions:
            sampler.observe([each])
        sampler.stop()
        return journal, sampler

    return run


def test_a_sample_carries_its_tensors_and_why_it_was_kept(sampled):
    journal, _ = sampled([prediction(manifest())])
    ((header, raw),) = journal.samples()
    assert (header.policy, header.inclusion_prob, header.predicted) == ("uniform", 1.0, "7")
    assert header.tensors == (TensorSpec(name="image", datatype="FP32", shape=(1, 8, 8)),)
    assert np.array_equal(np.frombuffer(raw, "<f4"), np.arange(64, dtype=np.float32))
    assert len(header.scores) == 10
    assert header.privacy == ""


def test_each_item_of_a_batch_is_a_sample_of_its_own(sampled):
    journal, _ = sampled([prediction(manifest(), n=3)])
    samples = journal.samples()
    assert [header.prediction_id for header, _ in samples] == ["p.0", "p.1", "p.2"]
    assert np.frombuffer(samples[2][1], "<f4")[0] == 128


def test_the_tensors_are_copied_when_they_are_kept():
    journal = Journal()
    sampler = Sampler(journal, key=b"", rng=random.Random(1))
    one = prediction(manifest())
    sampler.observe([one])
    one.inputs["image"][:] = -1
    sampler.stop()
    ((_, raw),) = journal.samples()
    assert np.frombuffer(raw, "<f4")[5] == 5


def test_the_uniform_stratum_does_not_look_at_the_input():
    spec = SamplingSpec(uniform_rate=0.2, uncertain_rate=0.3)
    sure, unsure = np.eye(10)[0], np.full(10, 0.1)
    kept = {}
    for name, scores in (("sure", sure), ("unsure", unsure)):
        decision = Decision(spec, random.Random(5))
        outputs = {"scores": scores[None]}
        found = [decision.decide(outputs, 0) for _ in range(20_000)]
        kept[name] = sum(k is not None and k.policy == "uniform" for k in found) / 20_000
    assert kept["sure"] == pytest.approx(0.2, abs=0.01)
    assert kept["unsure"] == pytest.approx(0.2, abs=0.01)


def test_uncertain_items_are_kept_more_often_at_the_rate_and_with_the_true_probability():
    spec = SamplingSpec(uniform_rate=0.1, uncertain_rate=0.05)
    decision, rng = Decision(spec, random.Random(2)), random.Random(3)
    sure, unsure = np.r_[0.91, np.full(9, 0.01)], np.r_[0.4, 0.3, np.full(8, 0.3 / 8)]
    counts = {"sure": 0, "unsure": 0}
    expected = {"sure": 0.0, "unsure": 0.0}
    n = 60_000
    for _ in range(n):
        name = "unsure" if rng.random() < 0.2 else "sure"
        kept = decision.decide({"scores": (unsure if name == "unsure" else sure)[None]}, 0)
        if kept is not None and kept.policy == "uncertain":
            counts[name] += 1
            expected[name] += 1 / kept.inclusion_prob
    assert (counts["sure"] + counts["unsure"]) / n == pytest.approx(0.05 * 0.9, rel=0.1)
    assert counts["unsure"] / 0.2 > 1.8 * counts["sure"] / 0.8
    # weighting by the recorded probability gives back how often each occurs
    assert expected["unsure"] / n == pytest.approx(0.2, rel=0.1)
    assert expected["sure"] / n == pytest.approx(0.8, rel=0.1)


@pytest.mark.parametrize(
    ("scores", "entropy"),
    [
        (np.full(4, 0.25), 1.0),
        (np.eye(4)[0], 0.0),
        (np.full(4, 3.0), 1.0),
        (None, None),
        (np.array([np.nan, 0.5]), None),
        (np.array([-1.0, 2.0]), None),
        (np.zeros(3), None),
        (np.ones(1), None),
    ],
)
def test_entropy_is_normalised_and_none_for_what_is_no_distribution(scores, entropy):
    result = normalised_entropy(scores)
    assert result == pytest.approx(entropy) if entropy is not None else result is None


def test_a_full_uncertain_bucket_leaves_the_uniform_one_alone():
    now = [0.0]
    budget = ByteBudget(6000, lambda: now[0])
    while budget.take("uncertain", 100):
        pass
    assert budget.take("uniform", 100)
    assert not budget.take("uncertain", 100)
    now[0] = 60.0
    assert budget.take("uncertain", int(6000 * SHARES["uncertain"]))
    now[0] = 1e6
    assert not budget.take("uncertain", int(6000 * SHARES["uncertain"] * BURST_MINUTES) + 1)


def test_one_large_item_does_not_keep_small_ones_out() -> None:
    now = [0.0]
    budget = ByteBudget(120_000, lambda: now[0])  # uniform: 800 bytes a second, at most 96 kB
    while budget.take("uniform", 4000):
        pass
    assert budget.exhausted("uniform")
    assert not budget.take("uniform", 90_000)
    now[0] = 4.0
    assert budget.exhausted("uniform")
    now[0] = 5.0
    assert not budget.exhausted("uniform")
    # large ones alone: after a while one item is made, whatever its length may be
    budget = ByteBudget(120_000, lambda: now[0])
    assert budget.take("uniform", 90_000)
    assert not budget.take("uniform", 90_000)
    assert budget.exhausted("uniform")
    now[0] += REMEMBERED_S
    assert not budget.exhausted("uniform")


def test_an_item_that_the_full_bucket_could_not_pay_holds_up_nothing() -> None:
    budget = ByteBudget(60_000, lambda: 0.0)
    assert not budget.take("uniform", 95_000)
    assert not budget.exhausted("uniform")
    assert budget.take("uniform", 4000)


def test_without_a_budget_nothing_is_made() -> None:
    budget = ByteBudget(0, lambda: 0.0)
    assert budget.exhausted("uniform")


def test_over_budget_and_above_the_high_water_mark_nothing_is_journalled(sampled):
    tight = manifest(SamplingSpec(uniform_rate=1.0, max_bytes_per_minute=1000))
    journal, sampler = sampled([prediction(tight, name=f"p{n}") for n in range(20)])
    assert 0 < len(journal.samples()) < 5
    assert sampler.counts["over_budget"] > 10
    full = manifest(SamplingSpec(uniform_rate=1.0, max_spool_bytes=10))
    journal, sampler = sampled([prediction(full)], journal=Journal(used_bytes=11))
    assert journal.rows == []
    assert sampler.counts["spool_full"] == 1


def test_a_correction_is_journalled_with_a_sample_of_its_input(sampled):
    quiet = manifest(SamplingSpec(uniform_rate=0.0, uncertain_rate=0.0))
    journal = Journal()
    sampler = Sampler(journal, key=b"")
    sampler.observe([prediction(quiet)])
    assert sampler.correct("digits", "p", "1")
    assert not sampler.correct("digits", "unknown", "1")
    assert not sampler.correct("digits", "p", "not a class")
    assert not sampler.correct("another", "p", "1")
    assert sampler.take_corrections("digits", 3) == 1
    assert sampler.take_corrections("digits", 3) == 0
    sampler.stop()
    correction = Correction.decode(journal.rows[0][1])
    assert (correction.predicted, correction.label, correction.version) == ("7", "1", 3)
    ((header, _),) = journal.samples()
    assert (header.policy, header.label, header.inclusion_prob) == ("event", "1", 1.0)


def test_an_item_of_a_batch_is_corrected_by_its_own_id():
    journal = Journal()
    sampler = Sampler(journal, key=b"")
    quiet = manifest(SamplingSpec(uniform_rate=0.0, uncertain_rate=0.0))
    sampler.observe([prediction(quiet, n=3)])
    for wrong in ("p", "p.3", "p.01", "p.x", "p.", "p.-1", ".1"):
        assert not sampler.correct("digits", wrong, "1"), wrong
    assert sampler.correct("digits", "p.2", "1")
    sampler.stop()
    ((header, raw),) = journal.samples()
    assert header.prediction_id == "p.2"
    assert np.frombuffer(raw, "<f4")[0] == 128


def test_what_is_remembered_is_bounded_and_the_oldest_goes_first():
    quiet = manifest(SamplingSpec(uniform_rate=0.0, uncertain_rate=0.0))
    sampler = Sampler(Journal(), key=b"", ring_bytes=20_000)
    for number in range(100):
        sampler.observe([prediction(quiet, name=f"p{number}")])
    assert not sampler.correct("digits", "p0", "1")
    assert sampler.correct("digits", "p99", "1")
    sampler.stop()


def test_a_correction_of_the_version_before_carries_its_sample() -> None:
    journal = Journal()
    sampler = Sampler(journal, key=b"")
    old = manifest(SamplingSpec(uniform_rate=0.0, uncertain_rate=0.0))
    new = old.model_copy(update={"version": 4})
    for each in (old, new):
        sampler.prepare(each)
    sampler.observe([prediction(old, name="before")])
    sampler.observe([prediction(new, name="after")])
    assert sampler.correct("digits", "before", "1")
    sampler.stop()
    ((header, _),) = journal.samples()
    assert (header.prediction_id, header.version, header.label) == ("before", 3, "1")


# ── memory ───────────────────────────────────────────────────────────────────────────────────────


def remembered(ring: Ring, predictions: Sequence[Prediction]) -> list[str]:
    return [each.prediction_id for each in predictions if ring.get("digits", each.prediction_id)]


def one(name: str, inputs: Tensors, outputs: Tensors | None = None) -> Prediction:
    return Prediction(name, manifest(), inputs, outputs or {}, 1)


def test_byte_strings_count_with_their_length() -> None:
    """An element of the array is a pointer."""
    ring = Ring(100_000)
    texts = [one(f"p{n}", {"text": np.array([[b"x" * 5000]], dtype=object)}) for n in range(100)]
    for each in texts:
        ring.add([each], 0.0)
    assert 10 < len(remembered(ring, texts)) <= 20
    ring.add([one("large", {"text": np.array([[b"x" * 50_000]], dtype=object)})], 0.0)
    found = ring.get("digits", "large")
    assert found is not None and found.tensors == {}


@pytest.mark.parametrize("kind", ["bytes", "memoryview", "array"])
def test_a_small_view_does_not_keep_a_large_message(kind: str) -> None:
    ring = Ring(2 << 20)
    message: Any = b"\1" * (1 << 20)
    if kind == "memoryview":
        message = memoryview(message)[10:]
    view = np.frombuffer(message, np.uint8)
    if kind == "array":
        view = view.copy()
    tensor = view[8:264].reshape(1, 256)
    each = one("p", {"x": tensor})
    ring.add([each], 0.0)
    found = ring._recent[-1].predictions[0].inputs["x"]
    np.testing.assert_array_equal(found, tensor)
    assert found.base is None and found.nbytes == 256
    assert ring._bytes < 2000


def test_the_rows_of_a_batch_count_once_and_are_not_copied() -> None:
    ring = Ring(2 << 20)
    scores = np.zeros((32, 1000), np.float32)
    body = bytes(32 * 6000)
    batch = [
        one(
            f"p{n}",
            {"x": np.frombuffer(body, np.uint8)[n * 6000 : (n + 1) * 6000].reshape(1, -1)},
            {"scores": scores[n : n + 1]},
        )
        for n in range(32)
    ]
    ring.add(batch, 0.0)
    assert ring._recent[-1].predictions is batch
    assert ring._bytes == pytest.approx(scores.nbytes + len(body) + 32 * Ring.OVERHEAD_BYTES, 1e-3)


def test_what_cannot_be_remembered_pushes_nothing_out() -> None:
    ring = Ring(100_000)
    small = one("small", {"x": np.zeros((1, 10), np.float32)})
    ring.add([small], 0.0)
    ring.add([one("huge", {}, {"y": np.zeros((1, 10**6), np.float32)})], 0.0)
    assert remembered(ring, [small]) == ["small"]


def test_the_queue_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(Journal(), key=b"", rng=random.Random(1))
    begun, proceed = threading.Event(), threading.Event()
    encode = sampler._journal_item

    def slow(work: Any) -> str:
        begun.set()
        proceed.wait(10)
        return encode(work)

    monkeypatch.setattr(sampler, "_journal_item", slow)
    of = manifest(SamplingSpec(uniform_rate=1.0, max_bytes_per_minute=10**9))
    size = 500_000
    for number in range(40):
        image = np.zeros((1, size), np.uint8)
        sampler.observe([Prediction(f"p{number}", of, {"image": image}, {}, 1)])
    assert begun.wait(10)
    assert sampler.counts["queue_full"] == 40 - QUEUED_BYTES // size
    assert sampler._queued_bytes <= QUEUED_BYTES
    proceed.set()
    sampler.stop()
    assert sampler._queued_bytes == 0
    assert sampler.counts["journalled"] == QUEUED_BYTES // size


def test_what_can_never_fit_a_sample_is_not_copied() -> None:
    sampler = Sampler(Journal(), key=b"", rng=random.Random(1))
    size = 8 * MAX_SAMPLE_BYTES + 1
    wide = np.zeros((1, size), np.uint8)
    text = np.array([[b"x" * size]], dtype=object)
    for name, tensor in (("wide", wide), ("text", text)):
        sampler.observe([Prediction(name, manifest(), {"x": tensor}, {}, 1)])
    # a hook may leave out what is large
    hooked = manifest(privacy=(StepSpec(name="drop_tensor", config={"tensor": "x"}),))
    sampler.observe([Prediction("hooked", hooked, {"x": wide}, {}, 1)])
    sampler.stop()
    assert sampler.counts == {"too_large": 2, "journalled": 1}


# ── inclusion ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("items", [1, 64, 200, 1000])
@pytest.mark.parametrize("neighbours", [0, 3], ids=["alone", "beside ids that are too long"])
def test_items_are_kept_with_the_probability_that_is_recorded(items: int, neighbours: int) -> None:
    """Of a large batch the first ones; those that cannot be kept use up nobody's turn."""
    rate = 0.002
    of = manifest(SamplingSpec(uniform_rate=rate, uncertain_rate=0.0))
    sampler = Sampler(Journal(), key=b"", rng=random.Random(7))
    sampler.stop()
    kept: list[float] = []
    sampler._hand_over = lambda work: kept.append(work.kept.inclusion_prob)  # type: ignore[method-assign]
    sampler._ring.add = lambda predictions, at: None  # type: ignore[method-assign]
    x = {"x": np.zeros((items, 1), np.float32)}
    batch = [Prediction("p", of, x, {}, items)]
    batch += [Prediction("p" * 65, of, x, {}, items) for _ in range(neighbours)]
    rounds = min(60_000, 600_000 // min(items, 64))
    for _ in range(rounds):
        sampler.observe(batch)
    eligible = rounds * min(items, 64)
    assert set(kept) == {rate}
    assert len(kept) / eligible == pytest.approx(rate, abs=4 * (rate / eligible) ** 0.5)


@pytest.mark.parametrize(("items", "longest"), [(1, 64), (2, 61), (1000, 61)])
def test_ids_are_sampled_while_those_of_their_items_fit(items: int, longest: int) -> None:
    journal = Journal()
    sampler = Sampler(journal, key=b"", rng=random.Random(1))
    for length in (longest, longest + 1):
        sampler.observe([prediction(manifest(), name="p" * length, n=items)])
    sampler.stop()
    assert len(journal.samples()) == min(items, 64)
    assert sampler.counts == {"journalled": min(items, 64)}


# ── privacy ──────────────────────────────────────────────────────────────────────────────────────


def test_hooks_run_in_order_and_their_digest_is_recorded(sampled):
    hooks = (
        StepSpec(name="mask", config={"tensor": "image", "start": [0, 0], "stop": [4, 8]}),
        StepSpec(name="round", config={"tensor": "image", "decimals": -1}),
    )
    journal, _ = sampled([prediction(manifest(privacy=hooks))])
    ((header, raw),) = journal.samples()
    image = np.frombuffer(raw, "<f4").reshape(8, 8)
    assert (image[:4] == 0).all()
    assert image[4, 5] == 40  # 37 rounded to tens
    assert len(header.privacy) == 64
    swapped, _ = sampled([prediction(manifest(privacy=hooks[::-1]))])
    assert swapped.samples()[0][0].privacy != header.privacy


def test_a_dropped_tensor_is_not_in_the_sample(sampled):
    hooks = (StepSpec(name="drop_tensor", config={"tensor": "image"}),)
    journal, _ = sampled([prediction(manifest(privacy=hooks))])
    ((header, raw),) = journal.samples()
    assert header.tensors == ()
    assert raw == b""


def test_pseudonyms_are_stable_on_a_device_and_differ_between_devices():
    spec = (StepSpec(name="pseudonym", config={"tensor": "user"}),)
    users = {"user": np.array([[7], [8], [7]], np.int32)}
    one, other = Privacy(spec, b"a").apply(users)["user"], Privacy(spec, b"b").apply(users)["user"]
    assert one.dtype == np.int64
    assert one[0] == one[2] != one[1]
    assert (one != other).all()
    assert users["user"].tolist() == [[7], [8], [7]]


@pytest.mark.parametrize(
    "spec",
    [
        StepSpec(name="rond", config={"tensor": "image"}),
        StepSpec(name="round", config={"tensr": "image"}),
        StepSpec(name="round", config={"tensor": "missing"}),
        StepSpec(name="pseudonym", config={"tensor": "image", "key": "mine"}),
    ],
)
def test_a_hook_that_cannot_be_applied_keeps_nothing(sampled, spec):
    journal, sampler = sampled([prediction(manifest(privacy=(spec,)))] * 2)
    assert journal.rows == []
    assert sampler.counts["refused"] == 2


def test_an_unknown_hook_names_the_nearest_and_own_hooks_can_be_registered():
    with pytest.raises(UnknownHook, match="did you mean 'round'"):
        Privacy((StepSpec(name="rond"),), b"")

    @privacy_hook("test.halve")
    def halve(tensors, *, tensor):
        return {**tensors, tensor: tensors[tensor] / 2}

    hooks = Privacy((StepSpec(name="test.halve", config={"tensor": "x"}),), b"")
    assert hooks.apply({"x": np.array([4.0])})["x"] == [2.0]

    @privacy_hook("test.fails")
    def fails(tensors):
        raise RuntimeError("boom")

    with pytest.raises(PrivacyError, match="RuntimeError"):
        Privacy((StepSpec(name="test.fails"),), b"").apply({})


def test_a_prepared_version_keeps_its_own_hook_whatever_is_registered_later():
    def register(value: float) -> None:
        @privacy_hook("test.same-name")
        def hook(tensors: Tensors) -> Tensors:
            return {name: np.full_like(array, value) for name, array in tensors.items()}

    first = manifest(privacy=(StepSpec(name="test.same-name"),))
    second = first.model_copy(update={"model": "letters"})
    journal = Journal()
    sampler = Sampler(journal, key=b"k" * 32, rng=random.Random(1))
    for value, each in ((1.0, first), (2.0, second)):
        register(value)
        sampler.prepare(each)
    sampler.observe([prediction(first)])
    sampler.observe([prediction(second)])
    sampler.stop()
    kept = {header.model: float(np.frombuffer(raw, "<f4")[0]) for header, raw in journal.samples()}
    assert kept == {"digits": 1.0, "letters": 2.0}


def test_a_version_whose_hook_is_unknown_is_not_sampled():
    journal = Journal()
    sampler = Sampler(journal, key=b"k" * 32)
    of = manifest(privacy=(StepSpec(name="test.nowhere"),))
    sampler.prepare(of)
    sampler.observe([prediction(of)])
    sampler.stop()
    assert journal.samples() == [] and sampler.counts["refused"] == 1
