"""The gates of a build: each profile's selected variant against what the champion serves there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue
from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.db.tables import Release, Variant
from cloud.gates import GateResult, judge_candidate, overall
from cloud.jobs.cache import Result
from cloud.jobs.plan import Plan
from cloud.jobs.workplace import Desk
from cloud.training.arrays import Rows

JUDGED_SPLITS = ("golden", "eval", "field")


def judge(session: Session, desk: Desk, plan: Plan, rows_path: str, optimized: Result) -> Result:
    """Ask candidate and champion about the held-out rows, and judge.

    Returns:
        `verdict` over all gates, and `gates`, each named `PROFILE/GATE`.
    """
    rows = Rows.open(Path(rows_path)).part(*JUDGED_SPLITS)
    judged_path = desk.directory / "judged.npz"
    rows.save(judged_path)
    selected = {
        str(candidate["profile"]): str(candidate["bundle_sha"])
        for candidate in _candidates(optimized)
        if candidate["selected"]
    }
    bundles = {f"candidate {profile}": sha for profile, sha in selected.items()}
    if plan.champion is not None:
        for profile in selected:
            sha = champion_bundle(session, plan.model, plan.champion, profile)
            if sha is not None:
                bundles[f"champion {profile}"] = sha
    answers = _answers(desk, bundles, str(judged_path))
    results: list[GateResult] = []
    for profile in selected:
        champion = answers.get(f"champion {profile}")
        judged = judge_candidate(
            None if champion is None else _by_split(rows, _wrong_if_refused(champion, rows, desk)),
            _by_split(rows, _wrong_if_refused(answers[f"candidate {profile}"], rows, desk)),
            _by_split(rows, rows.labels),
            desk.project.gate_spec,
            classes=desk.project.labels,
        )
        results += [replace(result, gate=f"{profile}/{result.gate}") for result in judged]
    gates: list[JsonValue] = [
        {
            "gate": result.gate,
            "verdict": result.verdict,
            "reason": result.reason,
            "evidence": dict(result.evidence),
        }
        for result in results
    ]
    return {"verdict": overall(results), "gates": gates}


def champion_bundle(session: Session, model: str, version: int, profile: str) -> str | None:
    """Blob of the bundle that the champion's newest release on `profile` has.

    A version that was never released there is stood for by its selected variant.
    """
    released = session.scalar(
        select(Release.bundle_sha)
        .where(Release.model == model, Release.version == version, Release.profile == profile)
        .where(Release.awaiting.is_(False))
        .order_by(Release.counter.desc())
        .limit(1)
    )
    if released is not None:
        return released
    return session.scalar(
        select(Variant.bundle_sha).where(
            Variant.model == model,
            Variant.version == version,
            Variant.profile == profile,
            Variant.selected.is_(True),
        )
    )


def _answers(desk: Desk, bundles: dict[str, str], data: str) -> dict[str, NDArray[np.int64]]:
    """Class indices by the bundle's name."""
    files: dict[str, JsonValue] = {
        name: str(desk.fetch(sha, f"{sha}.tar")) for name, sha in bundles.items()
    }
    desk.child("predict", data=data, bundles=files)
    with np.load(desk.directory / "answers.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in bundles}


def _wrong_if_refused(answers: NDArray[np.int64], rows: Rows, desk: Desk) -> NDArray[np.int64]:
    """A row that a checker refused counts as answered with a wrong class."""
    wrong = (rows.labels + 1) % len(desk.project.labels)
    return np.where(answers < 0, wrong, answers).astype(np.int64)


def _by_split(rows: Rows, values: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    return {
        split: values[rows.split == split] for split in JUDGED_SPLITS if (rows.split == split).any()
    }


def _candidates(optimized: Result) -> Iterable[dict[str, Any]]:
    candidates = optimized["candidates"]
    return candidates if isinstance(candidates, list) else []  # type: ignore[return-value]
