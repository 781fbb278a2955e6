"""The step "optimize" outside of its child: every candidate becomes a blob that can be fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue
from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.db.tables import Variant
from cloud.jobs.cache import Result
from cloud.jobs.members import Members
from cloud.jobs.plan import Plan
from cloud.jobs.workplace import Desk
from cloud.publish import build_bundle
from cloud.registry.models import VariantRecord
from optimizer.errors import UnknownRecipe
from optimizer.passes import find
from optimizer.space import parse_name, place_of
from optimizer.task import Candidate, OptimizeResult


def optimize(
    desk: Desk,
    plan: Plan,
    rows_path: str,
    exported: Result,
    trained: Members,
    parents: dict[str, str],
    points: Sequence[JsonValue] = (),
) -> Result:
    """Search, and store bundles and reports.

    Args:
        parents: from `parent_bundles`.
        points: what devices took; corrects what is predicted for their profiles.

    Returns:
        `candidates`, `selected` (variant by profile), the reports' blobs, and `failure`: one line
        with the nearest miss where a profile's budget is not met, else empty.
    """
    result = search(desk, plan, rows_path, exported, trained, parents, {"points": list(points)})
    candidates: list[JsonValue] = [_stored(desk, candidate) for candidate in result.candidates]
    return {
        "candidates": candidates,
        "selected": dict(result.selected),
        "failure": "; ".join(result.unmet.values()),
        "report_html_sha": desk.blobs.put_file(desk.directory / "report.html"),
        "report_json_sha": desk.blobs.put_file(desk.directory / "report.json"),
    }


def search(
    desk: Desk,
    plan: Plan,
    rows_path: str,
    exported: Result,
    trained: Members,
    parents: dict[str, str],
    wishes: Mapping[str, JsonValue],
) -> OptimizeResult:
    """Search, and leave bundles and reports on the desk.

    Args:
        parents: from `parent_bundles`.
        wishes: what the child is told beside, or instead of, the plan's and the project's words.
    """
    members: Any = exported["members"]
    files: dict[str, JsonValue] = {
        item["member"]: str(desk.fetch(item["onnx_sha"], f"{item['member']}.onnx"))
        for item in members
    }
    lineage: dict[str, JsonValue] = {
        name: {
            "checkpoint": str(desk.fetch(sha, f"{name}.pt")),
            "parent": trained.bases.get(name, ""),
            "notes": trained.trained[name].get("notes", []),
        }
        for name, sha in trained.checkpoints.items()
    }
    answer = desk.child(
        "optimize",
        data=rows_path,
        members=files,
        lineage=lineage,
        notes=list(trained.notes),
        parents={place: str(desk.fetch(sha, f"{sha}.tar")) for place, sha in parents.items()},
        version=plan.version,
        cache_dir=str(desk.place.optimizer_cache),
        **{"quick": plan.quick or desk.project.measure.quick, **wishes},
    )
    return OptimizeResult.model_validate(answer)


def parent_bundles(session: Session, plan: Plan) -> dict[str, str]:
    """Blobs of the quantised variants that a retraining takes its scales from.

    Only of members whose training starts from the champion's weights: what was trained from
    scratch has nothing in common with it.

    Returns:
        Blobs by `PROFILE/MEMBER-RECIPE`.
    """
    if plan.champion is None or not plan.warm_start:
        return {}
    rows = session.scalars(
        select(Variant).where(Variant.model == plan.model, Variant.version == plan.champion)
    )
    found = {}
    for row in rows:
        member, recipe, label = parse_name(row.name)
        if row.bundle_sha is not None and member in plan.warm_start and _quantises(recipe):
            found[f"{row.profile}/{place_of(f'{member}/{label}')}"] = row.bundle_sha
    return found


def _quantises(recipe: str) -> bool:
    try:
        return find(recipe).precision == "int8"
    except UnknownRecipe:  # there was one when the champion was built
        return False


def variant_records(optimized: Result) -> list[VariantRecord]:
    """The frontier as the registry keeps it."""
    candidates: Any = optimized["candidates"]
    return [VariantRecord(**candidate) for candidate in candidates]


def _stored(desk: Desk, candidate: Candidate) -> dict[str, JsonValue]:
    """A candidate's facts, with its bundle as a blob."""
    bundle_sha, length = None, 0
    if candidate.bundle_dir is not None:
        data = build_bundle(Path(candidate.bundle_dir))
        bundle_sha, length = desk.blobs.put(data), len(data)
    measurement: dict[str, JsonValue] = {}
    if candidate.measurement is not None:
        measurement = candidate.measurement.model_dump(mode="json")
    if candidate.server is not None:
        measurement["server"] = candidate.server.model_dump(mode="json")
    accuracy: dict[str, JsonValue] = {}
    if candidate.accuracy is not None:
        accuracy = candidate.accuracy.model_dump(mode="json", exclude={"predictions"})
    return {
        "profile": candidate.profile,
        "name": candidate.name,
        "runtime": candidate.runtime,
        "verdict": candidate.verdict,
        "reason": candidate.reason,
        "selected": candidate.selected,
        "measurement": {
            **measurement,
            "precision": candidate.precision,
            "memory_mib": candidate.memory_mib,
            "artifact_kib": candidate.artifact_kib,
            "threads": candidate.threads,
            "instances": candidate.instances,
            "max_qps": candidate.max_qps,
            "on_frontier": candidate.on_frontier,
            "notes": list(candidate.notes),
        },
        "accuracy": accuracy,
        "bundle_sha": bundle_sha,
        "bundle_length": length,
        "predicted": candidate.predicted,
    }
