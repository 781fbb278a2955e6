"""Who is looking: the API token lives in the signed session cookie, never on the server's disk.

A link with `?token=` or the form of `/login` sets it after asking the control plane whether it is
good; the token leaves the address bar at once.  The cookie is HttpOnly and SameSite=Lax.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qs, quote, urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from nicegui import app as console_app

from fleet.client.client import ApiError, AsyncClient
from fleet.client.errors import SignInNeeded
from fleet.console import plain, text
from fleet.console.view import Lang

ClientFactory = Callable[[str], AsyncClient]

MAX_FORM_BYTES: Final = 8192


def token_of(request: Request) -> str:
    """The session's token; empty when nobody has signed in."""
    return str(request.session.get("token", ""))


def language_of(request: Request) -> Lang:
    """The chosen language, or the browser's first."""
    chosen = request.session.get("lang") or request.headers.get("accept-language", "")[:2]
    return "ko" if chosen == "ko" else "en"


def local_path(path: str) -> str:
    """`path` where it leads back into the console, else its start page."""
    inside = path.startswith("/") and not path.startswith(("//", "/\\", "/login"))
    return path if inside and path.isprintable() else "/"


def sign_in_first(request: Request) -> Response:
    """To the form, and back to where the reader wanted to go."""
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse(f"/login?next={quote(wanted, safe='')}", 303)


async def take_token(request: Request, make_client: ClientFactory) -> Response:
    """Answer a page request that carries `?token=`: to the page without it, or to the form."""
    rest = [(name, value) for name, value in request.query_params.multi_items() if name != "token"]
    wanted = request.url.path + (f"?{urlencode(rest)}" if rest else "")
    token = request.query_params["token"]
    problem = await _problem(token, make_client, language_of(request))
    if problem:
        return _form(language_of(request), wanted, problem)
    request.session["token"] = token
    return RedirectResponse(wanted, 303)


async def _problem(token: str, make_client: ClientFactory, lang: Lang) -> str:
    """Why the token cannot be used, in one line; empty when it can."""
    if not token.strip():
        return text.translate(lang, "Enter a token.")
    try:
        async with make_client(token.strip()) as client:
            await client.overview()
    except SignInNeeded:
        return text.translate(
            lang, "The control plane does not know this token. Check it, or ask for a new one."
        )
    except ApiError as error:
        return error.message
    return ""


def register(make_client: ClientFactory) -> None:
    """Add the routes for signing in and out and for the language."""

    @console_app.get("/login", include_in_schema=False)
    def show_form(request: Request, next: str = "/") -> Response:
        return _form(language_of(request), next)

    @console_app.post("/login", include_in_schema=False)
    async def sign_in(request: Request) -> Response:
        body = await _bounded(request)
        fields = parse_qs(body.decode("utf-8", "replace"))
        token = fields.get("token", [""])[0].strip()
        wanted = local_path(fields.get("next", ["/"])[0])
        problem = await _problem(token, make_client, language_of(request))
        if problem:
            return _form(language_of(request), wanted, problem)
        request.session["token"] = token
        return RedirectResponse(wanted, 303)

    @console_app.get("/logout", include_in_schema=False)
    def sign_out(request: Request) -> Response:
        request.session.pop("token", None)
        return RedirectResponse("/login", 303)

    @console_app.get("/language/{lang}", include_in_schema=False)
    def choose_language(request: Request, lang: Lang, next: str = "/") -> Response:
        request.session["lang"] = lang
        return RedirectResponse(local_path(next), 303)


async def _bounded(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            return b""
    return body


def _form(lang: Lang, wanted: str, problem: str = "") -> HTMLResponse:
    page = plain.sign_in(lang, local_path(wanted), problem)
    return HTMLResponse(page, 401 if problem else 200, {"Cache-Control": "no-store"})
