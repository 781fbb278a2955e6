"""Which variants a retraining takes its scales from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from cloud.db.engine import Sessions, open_sessions
from cloud.jobs.optimized import parent_bundles
from cloud.jobs.plan import Plan
from cloud.registry import models as registry
from cloud.registry.models import VariantRecord

NAMES = ("small/fp32", "small/ort-int8", "large/ort-int8@openvino-t2", "small/gone-recipe")


@dataclass(frozen=True)
class Case:
    kind: str
    champion: int | None
    warm: tuple[str, ...]
    expected: set[str]


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Sessions:
    path: Path = tmp_path_factory.mktemp("db") / "skerry.db"
    sessions = open_sessions(f"sqlite:///{path}")
    with sessions.begin() as session:
        registry.register_candidate(
            session, model="digits", version=1, project="digits", dataset="d", code_sha="c",
            job="j", metrics={}, environment={},
            variants=[
                *(VariantRecord("pi", n, "onnxruntime", "PASS", bundle_sha="a") for n in NAMES),
                VariantRecord("pc", "small/ort-int8", "onnxruntime", "FAIL", bundle_sha="b"),
                VariantRecord("pc", "large/ort-int8", "onnxruntime", "INVALID"),
            ],
        )  # fmt: skip
    return sessions


@pytest.mark.parametrize(
    "case",
    [
        Case("build", 1, (), set()),
        Case("retrain", None, ("small",), set()),
        Case("retrain", 1, ("small",), {"pi/small-ort-int8", "pc/small-ort-int8"}),
        Case(
            "retrain",
            1,
            ("small", "large"),
            {"pi/small-ort-int8", "pi/large-ort-int8", "pc/small-ort-int8"},
        ),
        Case("retrain", 2, ("small",), set()),
    ],
)
def test_scales_come_from_quantised_variants_of_warm_started_members(
    sessions: Sessions, case: Case
) -> None:
    plan = Plan(
        job_id="j", kind=case.kind, project="digits", model="digits", code_sha="c", version=3,
        champion=case.champion, warm_start=dict.fromkeys(case.warm, "w"),
        members=("small", "large"),
    )  # fmt: skip
    with sessions() as session:
        assert set(parent_bundles(session, plan)) == case.expected
