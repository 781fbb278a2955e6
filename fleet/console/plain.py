"""Pages without a live connection: the form to sign in, and the one for a wrong address."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Final

from nicegui import __version__ as nicegui_version

from fleet.console import text

ASSETS: Final = Path(__file__).parent / "assets"
MARK: Final = (ASSETS / "mark.svg").read_text().strip()


def sign_in(lang: str, wanted: str, problem: str = "") -> str:
    """The form; `wanted` is where to go afterwards, `problem` why the last try failed."""
    banner = (
        '<div class="sk-banner" role="alert" data-testid="login-problem">'
        f"{html.escape(problem)}</div>"
        if problem
        else ""
    )
    hint = _t(lang, "The control plane prints a sign-in link with a token when it starts.")
    return _frame(
        lang,
        "Sign in",
        f"""<main class="sk-sign"><form method="post" action="/login">
<div class="sk-brand">{MARK}<span>Skerry</span></div>{banner}
<label for="token">{_t(lang, "API token")}</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus
 data-testid="login-token">
<input type="hidden" name="next" value="{html.escape(wanted)}">
<button type="submit" data-testid="login-submit">{_t(lang, "Sign in")}</button>
<p class="sk-hint">{hint}</p>
</form></main>""",
    )


def missing(lang: str) -> str:
    """For an address that the console does not have."""
    return _frame(
        lang,
        "There is no such page",
        f"""<main class="sk-lost"><h1>{_t(lang, "There is no such page")}</h1>
<p class="sk-dim">{_t(lang, "The address may be mistyped, or the thing may be gone.")}</p>
<a href="/">{_t(lang, "Go to the fleet")}</a></main>""",
    )


def _t(lang: str, english: str) -> str:
    return html.escape(text.translate(lang, english))


def _frame(lang: str, title: str, body: str) -> str:
    return f"""<!doctype html>
<html lang="{lang}"><head><meta charset="utf-8"><title>{_t(lang, title)} · Skerry</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="/console-assets/mark.svg">
<link rel="stylesheet" href="/_nicegui/{nicegui_version}/static/fonts.css">
<link rel="stylesheet" href="/console-assets/console.css"></head>
<body>{body}</body></html>"""
