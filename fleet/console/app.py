"""Mounts the console on the control plane's web application.

The console sees the control plane only through `AsyncClient`, so it could as well run in a process
of its own.  Everything a browser loads comes from this machine.
"""

from __future__ import annotations

import hashlib
from typing import Final

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from nicegui import app as console_app
from nicegui import ui

from fleet.client.client import ApiError
from fleet.console import access, plain, shell
from fleet.console.access import ClientFactory
from fleet.console.plain import ASSETS

SESSION_S: Final = 7 * 86400
"""How long a browser stays signed in."""

_REPORT_POLICY: Final = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def mount(
    app: FastAPI, client_factory: ClientFactory, storage_secret: str, *, https_only: bool = False
) -> None:
    """Serve the console at the root of `app`.  Call once a process, after the API's own routes.

    Args:
        client_factory: makes the client of one browser tab from the reader's token.
        storage_secret: signs the session cookie; the same secret keeps readers signed in.
        https_only: the address is https, so the cookie may travel no other way.
    """
    console_app.add_static_files("/console-assets", ASSETS)
    digest = hashlib.sha256()
    for asset in sorted(ASSETS.iterdir()):
        digest.update(asset.read_bytes())
    version = digest.hexdigest()[:12]
    ui.add_head_html(
        f'<link rel="stylesheet" href="/console-assets/console.css?v={version}">'
        f'<script defer src="/console-assets/console.js?v={version}"></script>',
        shared=True,
    )
    access.register(client_factory)
    _register_downloads(client_factory)

    @console_app.exception_handler(404)
    async def missing(request: Request, _: Exception) -> Response:
        if request.url.path.startswith("/v1/"):  # everything unknown ends here, the API's too
            return JSONResponse({"error": f"no route {request.url.path}"}, 404)
        return HTMLResponse(plain.missing(access.language_of(request)), 404)

    async def console(request: Request) -> Response | None:
        if "token" in request.query_params:
            return await access.take_token(request, client_factory)
        token = access.token_of(request)
        if not token:
            return access.sign_in_first(request)
        shell.draw(client_factory(token), access.language_of(request))
        return None

    for path in shell.PATHS:
        ui.page(path, title="Skerry")(console)
    ui.run_with(
        app,
        title="Skerry",
        favicon=ASSETS / "mark.svg",
        storage_secret=storage_secret,
        session_middleware_kwargs={
            "max_age": SESSION_S,
            "same_site": "lax",
            "https_only": https_only,
        },
        tailwind=False,
        show_welcome_message=False,
        reconnect_timeout=10.0,
    )


def _register_downloads(make_client: ClientFactory) -> None:
    """What a browser fetches as a file, with the session's token instead of a header."""

    @console_app.get("/downloads/variants/{variant_id}", include_in_schema=False)
    async def bundle(request: Request, variant_id: int) -> Response:
        token = access.token_of(request)
        if not token:
            return access.sign_in_first(request)
        try:
            async with make_client(token) as client:
                content = await client.bundle(variant_id)
        except ApiError as error:
            return Response(error.message, error.status or 502, media_type="text/plain")
        name = f'attachment; filename="variant-{variant_id}.bundle"'
        return Response(content, headers={"Content-Disposition": name})

    @console_app.get("/downloads/commands/{command_id}", include_in_schema=False)
    async def attachment(request: Request, command_id: str) -> Response:
        token = access.token_of(request)
        if not token:
            return access.sign_in_first(request)
        try:
            async with make_client(token) as client:
                command = await client.command(command_id)
                content = await client.command_attachment(command_id)
        except ApiError as error:
            return Response(error.message, error.status or 502, media_type="text/plain")
        ending = "zip" if command.attachment.get("media_type") == "application/zip" else "txt"
        name = f"{command.device}-{command.name}-{command.id[:8]}.{ending}"
        headers = {
            "Content-Disposition": f'attachment; filename="{name}"',
            "X-Content-Type-Options": "nosniff",
        }
        return Response(content, headers=headers, media_type="application/octet-stream")

    @console_app.get("/reports/{job_id}", include_in_schema=False)
    async def report(request: Request, job_id: str) -> Response:
        token = access.token_of(request)
        if not token:
            return access.sign_in_first(request)
        try:
            async with make_client(token) as client:
                page = await client.job_report(job_id)
        except ApiError as error:
            return Response(error.message, error.status or 502, media_type="text/plain")
        return HTMLResponse(page, headers={"Content-Security-Policy": _REPORT_POLICY})
