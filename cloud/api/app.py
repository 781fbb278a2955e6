"""The FastAPI application: routers, error mapping, limits."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from cloud.api import fleet_routes, learning_routes, model_routes, operation_routes
from cloud.api.context import Context
from cloud.errors import Conflict, NotFound, SkerryError, UserError
from fleet.enrolment.errors import AuthorityUnreadable, ClaimRefused, EnrolmentError
from optimizer.errors import OptimizerError

log = logging.getLogger("skerry.api")


def create_api(context: Context) -> FastAPI:
    """Application with every public route below `/v1`, the schema at `/v1/openapi.json`."""
    app = FastAPI(title="Skerry", openapi_url="/v1/openapi.json", docs_url=None, redoc_url=None)
    app.state.context = context
    for module in (fleet_routes, model_routes, learning_routes, operation_routes):
        app.include_router(module.router)
    app.add_exception_handler(SkerryError, _on_skerry_error)
    app.add_exception_handler(OptimizerError, _on_skerry_error)
    app.add_exception_handler(EnrolmentError, _on_skerry_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)

    @app.get("/v1/health", include_in_schema=False)
    def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


def _status(error: Exception) -> int:
    if isinstance(error, NotFound):
        return 404
    if isinstance(error, Conflict):
        return 409
    if isinstance(error, ClaimRefused):
        return 403
    if isinstance(error, AuthorityUnreadable):
        return 500
    if isinstance(error, UserError | OptimizerError | EnrolmentError):
        return 400
    return 500


def _on_skerry_error(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, _status(error))


def _on_http_exception(_request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else "internal error"
    return JSONResponse({"error": detail}, status)


def _on_validation_error(_request: Request, error: Exception) -> JSONResponse:
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    place = ".".join(str(part) for part in first.get("loc", ()) if part != "body") or "request"
    return JSONResponse({"error": f"{place}: {first.get('msg', 'wrong')}"}, 400)
