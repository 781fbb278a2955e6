"""What is needed to install without a line: signed files, and pieces of released blobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from cloud import export
from cloud.api.auth import Operator
from cloud.api.context import ContextDep
from fleet.client.schemas import ExportBlob, ExportedRelease, ExportIn, ExportOut

router = APIRouter(prefix="/v1")


@router.post("/export")
def export_devices(request: ExportIn, context: ContextDep, _: Operator) -> ExportOut:
    """The signed files of these devices at one moment, and which blobs belong to them."""
    services = context.services
    now = context.clock()
    with context.readers() as session:
        made = export.collect(
            session,
            services.image_repository.directory,
            services.director.directory,
            request.devices,
            request.model,
            now=now,
        )
    return ExportOut(
        created_at=now,
        expires_at=made.expires_at,
        files=made.files,
        blobs=[
            ExportBlob(path=blob.path, target=blob.target, sha256=blob.sha256, length=blob.length)
            for blob in made.blobs
        ],
        releases=[
            ExportedRelease(device=device, model=model, version=version)
            for device, model, version in made.releases
        ],
    )


@router.get("/export/blob")
def export_blob(
    context: ContextDep,
    _: Operator,
    target: str,
    sha256: str,
    offset: Annotated[int, Query(ge=0, le=2**62)] = 0,
    length: Annotated[int, Query(ge=1, le=export.MAX_PIECE_BYTES)] = export.MAX_PIECE_BYTES,
) -> Response:
    """A piece of a blob of a release; empty beyond its end."""
    with context.readers() as session:
        data = export.read_piece(session, context.services.blobs, target, sha256, offset, length)
    return Response(data, media_type="application/octet-stream")
