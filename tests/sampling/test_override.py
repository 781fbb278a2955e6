"""Overriding how a model is sampled, for a time and within its manifest's bounds."""

from __future__ import annotations

import random

from edge_agent.sampling import Override, Sampler
from edge_agent.wire.manifest import SamplingSpec, StepSpec
from tests.sampling.test_sampling import Journal, manifest, prediction

SELDOM = SamplingSpec(uniform_rate=0.0, uncertain_rate=0.0, max_bytes_per_minute=50_000_000)


class _World:
    """A sampler whose time the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.journal = Journal()
        self.sampler = Sampler(
            self.journal, key=b"k" * 32, rng=random.Random(1), monotonic=lambda: self.now
        )

    def predict(self, of, count: int) -> None:
        for number in range(count):
            self.sampler.observe([prediction(of, name=f"p{number}")])

    def samples(self):
        self.sampler.stop()
        return self.journal.samples()


def test_an_override_keeps_what_the_manifest_would_not_and_says_with_what_probability():
    world, of = _World(), manifest(SELDOM)
    world.predict(of, 5)
    world.sampler.override("digits", Override(uniform_rate=1.0), 60.0)
    world.predict(of, 5)
    samples = world.samples()
    assert [header.inclusion_prob for header, _ in samples] == [1.0] * 5


def test_it_falls_back_by_itself_when_its_time_is_over():
    world, of = _World(), manifest(SELDOM)
    world.sampler.override("digits", Override(uniform_rate=1.0), 60.0)
    world.predict(of, 3)
    world.now = 60.0
    world.predict(of, 5)
    assert len(world.samples()) == 3


def test_it_holds_for_a_version_that_comes_while_it_does():
    world = _World()
    world.sampler.override("digits", Override(uniform_rate=1.0), 60.0)
    fresh = manifest(SELDOM).model_copy(update={"version": 4})
    world.sampler.prepare(fresh)
    world.predict(fresh, 2)
    assert [header.version for header, _ in world.samples()] == [4, 4]


def test_it_leaves_other_models_alone():
    world = _World()
    world.sampler.override("faces", Override(uniform_rate=1.0), 60.0)
    world.predict(manifest(SELDOM), 5)
    assert world.samples() == []


def test_overrides_one_after_the_other_never_refill_the_manifests_budget():
    spec = SamplingSpec(uniform_rate=1.0, max_bytes_per_minute=4000)
    plain, of = _World(), manifest(spec)
    plain.predict(of, 200)
    without = len(plain.samples())
    world = _World()
    for _ in range(20):
        world.sampler.override(
            "digits", Override(uniform_rate=1.0, max_bytes_per_minute=10_000_000), 60.0
        )
        world.predict(of, 10)
    assert 0 < len(world.samples()) <= without


def test_a_smaller_budget_holds_beside_the_manifests():
    world, of = _World(), manifest(SamplingSpec(uniform_rate=1.0))
    world.sampler.override("digits", Override(max_bytes_per_minute=0), 60.0)
    world.predict(of, 5)
    assert world.samples() == []


def test_privacy_hooks_apply_under_an_override_too():
    hooks = (StepSpec(name="drop_tensor", config={"tensor": "image"}),)
    world, of = _World(), manifest(SELDOM, hooks)
    world.sampler.override("digits", Override(uniform_rate=1.0), 60.0)
    world.predict(of, 1)
    ((header, raw),) = world.samples()
    assert (header.tensors, raw) == ((), b"")
    assert header.privacy
