"""The FastAPI application: routers, error mapping, limits."""

from __future__ import annotations

import logging
import math
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cloud.api import (
    command_routes,
    device_routes,
    enrolment_routes,
    evidence_routes,
    export_routes,
    gateway_routes,
    group_routes,
    lab_routes,
    learning_routes,
    metrics_routes,
    model_routes,
    operation_routes,
    registry_routes,
    rollout_routes,
    trial_routes,
)
from cloud.api.context import Context
from cloud.blobs import BlobMissing
from cloud.errors import Conflict, Forbidden, NotFound, SkerryError, UserError
from fleet.enrolment.errors import (
    AuthorityUnreadable,
    ClaimRefused,
    EnrolmentError,
    TooManyRefusals,
)
from optimizer.errors import OptimizerError

log = logging.getLogger("skerry.api")

MAX_BODY_BYTES: Final = 1 << 20
"""Bound of every body but a project's, a candidate's and a table's of devices, which their own
routes bound while they read.  A body is read before the caller is known: without a bound anybody
could fill the memory."""


def create_api(context: Context) -> FastAPI:
    """Application with every public route below `/v1`, the schema at `/v1/openapi.json`."""
    app = FastAPI(title="Skerry", openapi_url="/v1/openapi.json", docs_url=None, redoc_url=None)
    app.state.context = context
    for module in (
        device_routes, enrolment_routes, model_routes, learning_routes, operation_routes,
        rollout_routes, evidence_routes, export_routes, lab_routes, gateway_routes,
        command_routes, metrics_routes,
        group_routes, registry_routes, trial_routes,
    ):  # fmt: skip
        app.include_router(module.router)
    app.add_exception_handler(SkerryError, _on_skerry_error)
    app.add_exception_handler(OptimizerError, _on_skerry_error)
    app.add_exception_handler(EnrolmentError, _on_skerry_error)
    app.add_exception_handler(BlobMissing, _on_blob_missing)
    app.add_exception_handler(OperationalError, _on_database_away)
    app.add_exception_handler(Exception, _on_fault)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_middleware(_BoundedBody)

    @app.get("/v1/health", include_in_schema=False)
    def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


def _status(error: Exception) -> int:
    if isinstance(error, NotFound):
        return 404
    if isinstance(error, Conflict):
        return 409
    if isinstance(error, ClaimRefused | Forbidden):
        return 403
    if isinstance(error, TooManyRefusals):
        return 429
    if isinstance(error, AuthorityUnreadable):
        return 500
    if isinstance(error, UserError | OptimizerError | EnrolmentError):
        return 400
    return 500


def _on_skerry_error(_request: Request, error: Exception) -> JSONResponse:
    headers = None
    if isinstance(error, TooManyRefusals):
        headers = {"Retry-After": str(math.ceil(error.retry_after_s))}
    return JSONResponse({"error": str(error)}, _status(error), headers=headers)


def _on_http_exception(_request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else "internal error"
    headers = error.headers if isinstance(error, HTTPException) else None
    return JSONResponse({"error": detail}, status, headers=headers)


def _on_blob_missing(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse(
        {"error": f"{error} in the blob store any more; restore it from a backup"}, 404
    )


def _on_database_away(_request: Request, error: Exception) -> JSONResponse:
    log.error("database.away cause=%s", getattr(error, "orig", error))
    return JSONResponse(
        {"error": "the database does not answer in time; try again"},
        503,
        headers={"Retry-After": "5"},
    )


def _on_fault(_request: Request, _error: Exception) -> JSONResponse:
    # the server logs the traceback; callers get the form of every other error
    return JSONResponse({"error": "internal error; the log of the process api has it"}, 500)


def _on_validation_error(_request: Request, error: Exception) -> JSONResponse:
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    place = ".".join(str(part) for part in first.get("loc", ()) if part != "body") or "request"
    return JSONResponse({"error": f"{place}: {first.get('msg', 'wrong')}"}, 400)


class _BoundedBody:
    """Refuses bodies above `MAX_BODY_BYTES`, by their announced length or while they come in."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_bounded(scope["method"], scope["path"]):
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > MAX_BODY_BYTES:
            response = _on_http_exception(Request(scope), _too_large())
            await response(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise _too_large()
            return message

        await self._app(scope, counted, send)


def _is_bounded(method: str, path: str) -> bool:
    large = method == "PUT" and path.startswith(
        ("/v1/projects/", "/v1/lab/blobs/", "/v1/devices/import")
    )
    return path.startswith("/v1/") and not large


def _too_large() -> HTTPException:
    return HTTPException(413, f"the request's body is larger than {MAX_BODY_BYTES >> 20} MiB")
