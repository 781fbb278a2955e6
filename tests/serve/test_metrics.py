"""Counts, percentiles, and the text that Prometheus reads."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.serve import ServedModel
from edge_agent.serve.metrics import (
    ModelMetrics,
    Snapshot,
    bucket_of,
    edge_us,
    percentile_us,
    prometheus,
)
from edge_agent.wire.manifest import StepSpec
from tests.runtime.networks import STEPS, write_bundle

from .conftest import Running
from .test_protocol import INFER, json_request


@pytest.mark.parametrize("latency_us", [0.0, 0.5, 1.0, 1.01, 7.6, 300.0, 12_345.0, 1e7])
def test_a_latency_lies_in_its_bucket(latency_us: float) -> None:
    index = bucket_of(latency_us)
    assert latency_us <= edge_us(index) * (1 + 1e-9)
    assert index == 0 or latency_us > edge_us(index - 1) * (1 - 1e-9)


def test_no_latency_is_too_long_for_the_histogram() -> None:
    metrics = ModelMetrics(0.0)
    metrics.predicted(1e15)
    assert metrics.window("r", 1, 1.0).requests == 1


def test_percentiles_read_at_most_nine_percent_high() -> None:
    latencies = np.random.default_rng(0).lognormal(5.0, 1.0, size=5000)
    metrics = ModelMetrics(0.0)
    for latency in latencies:
        metrics.predicted(float(latency))
    window = metrics.window("r", 1, 10.0)
    for fraction, read in ((0.5, window.p50_us), (0.99, window.p99_us)):
        exact = float(np.quantile(latencies, fraction, method="inverted_cdf"))
        assert exact <= read <= exact * 1.0906


def test_without_predictions_there_is_no_percentile() -> None:
    assert percentile_us([0, 0, 0], 0.99) == 0.0


# ── the text ─────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Family:
    """One family of the text: its kind, and value by name and labels."""

    kind: str
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float]


_SAMPLE = re.compile(r'([a-z_]+)\{((?:[a-z]+="(?:[^"\\\n]|\\["\\n])*",?)*)\} (\S+)')
_LABEL = re.compile(r'([a-z]+)="((?:[^"\\\n]|\\["\\n])*)"')
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


def parsed(text: str) -> dict[str, Family]:
    """Read the text format 0.0.4 as Prometheus does, strictly."""
    lines = text.split("\n")  # nothing else ends a line
    assert lines.pop() == ""
    families: dict[str, Family] = {}
    name = about = ""
    for line in lines:
        if line.startswith("# HELP "):
            _, _, name, about = line.split(" ", 3)
            assert about and name not in families
        elif line.startswith("# TYPE "):
            assert line.split(" ")[2] == name, "HELP and TYPE of one family stand together"
            families[name] = Family(line.split(" ")[3], {})
        else:
            match = _SAMPLE.fullmatch(line)
            assert match, line
            family = families[name]
            sample, labels, value = match.groups()
            suffix = sample.removeprefix(name)
            allowed = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
            assert suffix in allowed, f"{sample} among {name}"
            pairs = tuple(
                (label, re.sub(r'\\[\\"n]', lambda found: _ESCAPES[found[0]], text))
                for label, text in _LABEL.findall(labels)
            )
            assert (suffix, pairs) not in family.samples, f"{line} is given twice"
            family.samples[suffix, pairs] = float(value)
    return families


def histogram(family: Family, **labels: str) -> tuple[list[tuple[float, float]], float, float]:
    """(limit, count) of each bucket in the order of the text, the sum, and the count."""
    buckets: list[tuple[float, float]] = []
    total = count = math.nan
    for (suffix, pairs), value in family.samples.items():
        given = dict(pairs)
        limit = given.pop("le", "")
        if given != labels:
            continue
        if suffix == "_bucket":
            buckets.append((float(limit), value))
        elif suffix == "_sum":
            total = value
        else:
            count = value
    return buckets, total, count


def exposed(*models: tuple[str, int, Snapshot], **errors: int) -> dict[str, Family]:
    text = prometheus(models, errors)
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ImportError:
        pass
    else:
        list(text_string_to_metric_families(text))
    return parsed(text)


def counted(latencies_us: Iterable[float] = (), batches: Iterable[int] = ()) -> Snapshot:
    metrics = ModelMetrics(0.0)
    for latency_us in latencies_us:
        metrics.predicted(latency_us)
    for items in batches:
        metrics.ran(items)
    return metrics.snapshot(1.0)


def test_without_models_the_text_is_valid() -> None:
    assert set(exposed()) == {
        "skerry_requests_total", "skerry_rejected_total", "skerry_errors_total",
    }  # fmt: skip


def test_requests_are_told_by_outcome() -> None:
    metrics = ModelMetrics(0.0)
    metrics.predicted(10.0)
    metrics.failed()
    for _ in range(2):
        metrics.rejected("out_of_range")
        metrics.shed("expired")
        metrics.shed("overloaded")
    metrics.shed("expired")
    families = exposed(("m", 3, metrics.snapshot(1.0, waiting=7)), BadRequest=4)
    outcomes = {
        dict(pairs)["outcome"]: value
        for (_, pairs), value in families["skerry_requests_total"].samples.items()
    }
    assert outcomes == {
        "predicted": 1, "rejected": 2, "failed": 1, "overloaded": 2, "expired": 3,
    }  # fmt: skip
    model = (("model", "m"), ("version", "3"))
    rejected = families["skerry_rejected_total"].samples
    assert rejected == {("", (*model, ("reason", "out_of_range"))): 2}
    assert families["skerry_waiting_requests"].samples == {("", model): 7}
    assert families["skerry_errors_total"].samples == {("", (("type", "BadRequest"),)): 4}


def test_histograms_are_cumulative_and_agree_with_their_counts() -> None:
    latencies = [*np.random.default_rng(0).lognormal(6, 2, 500).tolist(), 0.5, 16.0, 17.0, 1e8]
    family = exposed(("m", 1, counted(latencies)))["skerry_latency_seconds"]
    buckets, total, count = histogram(family, model="m", version="1")
    limits = [limit for limit, _ in buckets]
    assert limits == sorted(set(limits)) and limits[-1] == math.inf
    counts = [value for _, value in buckets]
    assert counts == sorted(counts)
    assert counts[-1] == count == len(latencies)
    assert total == pytest.approx(sum(latencies) / 1e6, rel=1e-4)
    for limit, value in buckets[:-1]:  # the limits are edges of buckets, so the counts are exact
        assert value == sum(latency / 1e6 <= limit * (1 + 1e-5) for latency in latencies)


def test_batches_are_told_by_their_items() -> None:
    sizes = [1, 1, 2, 3, 64, 65, 1000]
    family = exposed(("m", 1, counted(batches=sizes)))["skerry_batch_items"]
    buckets, total, count = histogram(family, model="m", version="1")
    assert (total, count) == (sum(sizes), len(sizes))
    assert buckets == [
        (1, 2), (2, 3), (4, 4), (8, 4), (16, 4), (32, 4), (64, 5), (128, 6), (math.inf, 7),
    ]  # fmt: skip


def test_sizes_without_end_are_counted_in_few_places() -> None:
    sizes = [*range(1, 5000), 2**40]
    snapshot = counted(batches=sizes)
    assert len(snapshot.batches) == 15
    assert snapshot.batches[4] == 2 and snapshot.batches[8] == 4
    assert (sum(snapshot.batches.values()), snapshot.items) == (len(sizes), sum(sizes))


def test_models_stand_together_in_each_family() -> None:
    families = exposed(("a", 1, counted([1.0])), ("b", 2, counted([1.0, 2.0])))
    for model, version, wanted in (("a", "1", 1), ("b", "2", 2)):
        family = families["skerry_latency_seconds"]
        assert histogram(family, model=model, version=version)[2] == wanted


@settings(max_examples=100, deadline=None)
@given(st.text(), st.text())
def test_labels_are_escaped(reason: str, model: str) -> None:
    """A reason is whatever a project's checker makes up."""
    metrics = ModelMetrics(0.0)
    metrics.rejected(reason)
    families = exposed((model, 1, metrics.snapshot(1.0)))
    ((_, pairs),) = families["skerry_rejected_total"].samples
    assert dict(pairs) == {"model": model, "version": "1", "reason": reason}


def test_reasons_without_end_are_counted_together() -> None:
    metrics = ModelMetrics(0.0)
    for number in range(1000):
        metrics.rejected(f"pixel {number} is bright")
    snapshot = metrics.snapshot(1.0)
    assert snapshot.rejects == 1000
    assert len(snapshot.rejected) == ModelMetrics.MAX_REASONS + 1
    assert snapshot.rejected["other"] == 1000 - ModelMetrics.MAX_REASONS


def test_a_server_exposes_what_it_did(quick_serving: Running) -> None:
    for count in (1, 2):
        quick_serving.ask("POST", INFER, json_request(count))
    quick_serving.ask("POST", INFER, "{")
    quick_serving.ask("GET", "/v2/models/none")
    reply = quick_serving.ask("GET", "/metrics")
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = parsed(reply.body.decode())
    digits = {"model": "digits", "version": "1"}
    _, total_s, count = histogram(families["skerry_latency_seconds"], **digits)
    assert count == 2
    assert 0 < total_s < 2
    assert histogram(families["skerry_batch_items"], **digits)[1:] == (3, 2)
    assert families["skerry_errors_total"].samples == {
        ("", (("type", "BadRequest"),)): 1,
        ("", (("type", "ModelNotServed"),)): 1,
    }


def test_a_reason_that_is_no_text_breaks_neither_answer_nor_metrics(
    quick_serving: Running, tmp_path: Path
) -> None:
    """A project's checker may name a file whose name is no UTF-8."""
    code = """
from edge_agent.pipeline import Rejected, checker

@checker("named")
def named(tensors):
    if tensors["image"][0, 0, 0] == 1:
        raise Rejected("caf\\udce9", "caf\\udce9")
"""
    steps = (StepSpec(name="named"), *STEPS)
    write_bundle(tmp_path / "odd", version=2, steps=steps, code={"steps.py": code}, cost_us=50)
    quick_serving.plane.install("digits", ServedModel.load(tmp_path / "odd"))
    request = json_request()
    request["inputs"][0]["data"][0] = 1  # type: ignore[index]
    assert quick_serving.ask("POST", INFER, request).status == 400
    reply = quick_serving.ask("GET", "/metrics")
    assert reply.status == 200
    rejected = parsed(reply.body.decode())["skerry_rejected_total"].samples
    assert list(rejected.values()) == [1]
