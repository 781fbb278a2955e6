"""Registry: versions, candidates, gates, approval, publication."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from cloud import registry, releases
from cloud.api.auth import Operator, Viewer
from cloud.api.context import ContextDep
from cloud.db.tables import GateDecision, ModelVersion, Promotion, Release, Variant
from cloud.errors import NotFound
from fleet.client.rollout_schemas import ModelPage
from fleet.client.schemas import (
    ApprovalIn,
    GateOut,
    ModelDetail,
    ModelOut,
    PublishIn,
    RowNumber,
    VariantOut,
)

router = APIRouter(prefix="/v1")


@router.get("/models")
def list_models(
    context: ContextDep,
    _: Viewer,
    model: str = "",
    offset: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> ModelPage:
    wanted = [ModelVersion.model == model] if model else []
    with context.readers() as session:
        rows = session.scalars(
            select(ModelVersion)
            .where(*wanted)
            .order_by(ModelVersion.model, ModelVersion.version.desc())
            .offset(offset)
            .limit(limit)
        ).all()
        total = session.scalar(select(func.count()).select_from(ModelVersion).where(*wanted)) or 0
        items = [ModelOut.model_validate(row, from_attributes=True) for row in rows]
    return ModelPage(items=items, total=total, offset=offset)


@router.get("/models/{model}/{version}")
def show_model(model: str, version: RowNumber, context: ContextDep, _: Viewer) -> ModelDetail:
    with context.readers() as session:
        return _detail(session, model, version)


@router.post("/models/{model}/{version}/approve")
def approve(
    model: str, version: RowNumber, body: ApprovalIn, context: ContextDep, caller: Operator
) -> ModelDetail:
    with context.writers.begin() as session:
        registry.transition(session, model, version, "approved", caller.name, body.reason)
        return _detail(session, model, version)


@router.post("/models/{model}/{version}/reject")
def reject(
    model: str, version: RowNumber, body: ApprovalIn, context: ContextDep, caller: Operator
) -> ModelDetail:
    with context.writers.begin() as session:
        registry.transition(session, model, version, "rejected", caller.name, body.reason)
        return _detail(session, model, version)


@router.post("/models/{model}/{version}/publish")
def publish(
    model: str, version: RowNumber, body: PublishIn, context: ContextDep, caller: Operator
) -> ModelDetail:
    """Sign and publish the selected variant of each profile, or the ones named in the body."""
    services = context.services
    with context.readers() as session:
        forms = releases.encode_version(
            session, services.blobs, model, version,
            variant_ids=body.variants, allow_predicted=body.allow_predicted,
        )  # fmt: skip
    with context.writers.begin() as session:
        releases.publish_version(
            session,
            services.blobs,
            services.image_repository,
            model,
            version,
            variant_ids=body.variants,
            allow_predicted=body.allow_predicted,
            actor=caller.name,
            forms=forms,
        )
        return _detail(session, model, version)


@router.get("/variants/{variant_id}/bundle")
def download_bundle(variant_id: RowNumber, context: ContextDep, _: Viewer) -> Response:
    """Any candidate of the pool, selected or not, as the bundle that a device would get."""
    with context.readers() as session:
        row = session.get(Variant, variant_id)
    if row is None or row.bundle_sha is None:
        raise NotFound(f"no bundle of a variant {variant_id}")
    name = f"{row.model}-{row.version}-{row.profile}-{row.name.replace('/', '-')}.bundle"
    return Response(
        context.services.blobs.get(row.bundle_sha),
        media_type="application/x-tar",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


def _detail(session: Session, model: str, version: int) -> ModelDetail:
    row = session.get(ModelVersion, (model, version))
    if row is None:
        raise NotFound(f"no version {version} of model {model!r}")
    variants = session.scalars(
        select(Variant)
        .where(Variant.model == model, Variant.version == version)
        .order_by(Variant.profile, Variant.id)
    )
    gates = session.scalars(
        select(GateDecision)
        .where(GateDecision.subject == f"model:{model}:{version}")
        .order_by(GateDecision.id)
    )
    promotions = session.scalars(
        select(Promotion)
        .where(Promotion.model == model, Promotion.version == version)
        .order_by(Promotion.id)
    )
    published = session.scalars(
        select(Release)
        .where(Release.model == model, Release.version == version)
        .order_by(Release.profile, Release.counter)
    )
    return ModelDetail(
        **ModelOut.model_validate(row, from_attributes=True).model_dump(),
        variants=[VariantOut.model_validate(item, from_attributes=True) for item in variants],
        gates=[GateOut.model_validate(item, from_attributes=True) for item in gates],
        promotions=[
            {
                "from_state": item.from_state,
                "to_state": item.to_state,
                "actor": item.actor,
                "reason": item.reason,
                "at": item.at,
            }
            for item in promotions
        ],
        releases=[
            {
                "target": item.target,
                "profile": item.profile,
                "counter": item.counter,
                "bundle_sha": item.bundle_sha,
                "length": item.length,
                "info": item.info,
                "created_at": item.created_at,
                "awaiting": item.awaiting,
            }
            for item in published
        ],
    )
