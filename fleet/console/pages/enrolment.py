"""Enrolment: create claims, hand their files out, and see which have been used."""

from __future__ import annotations

import io
import time
import zipfile
from typing import Final

from nicegui import ui
from pydantic import ValidationError

from edge_agent.wire.base import describe
from edge_agent.wire.messages import ClaimFile
from fleet.client.client import ApiError
from fleet.client.schemas import ClaimIn, ClaimOut
from fleet.console import formats, tables
from fleet.console.labels import BadLabels, parse_labels
from fleet.console.live import Live
from fleet.console.tables import Column, Row, Rows
from fleet.console.view import Tag, View, confirm
from fleet.console.widgets import button, card, empty, page_head

_MAX_CLAIMS: Final = 500
"""More are for the command line; their files pass through this page's memory."""


async def page(view: View) -> None:
    lead = view.t("A claim lets one new device in, once. Its file holds a secret, shown only now.")
    with page_head(view, view.t("Enrolment"), lead):
        pass
    live: Live[list[ClaimOut]] = Live(view, view.api.claims)
    with card(view.t("New claim")):
        with ui.element("div").classes("sk-form"):
            profile = ui.input(view.t("Hardware profile"), value="this-machine")
            profile.props("outlined dense data-testid=claim-profile").classes("sk-field")
            labels = ui.input(view.t("Labels"), placeholder="site=busan, line=3")
            labels.props("outlined dense data-testid=claim-labels").classes("sk-field")
            hours = ui.number(view.t("Valid for, hours"), value=24, min=0.1)
            hours.props("outlined dense").classes("sk-field")
            count = ui.number(view.t("How many"), value=1, min=1, max=_MAX_CLAIMS, precision=0)
            count.props("outlined dense data-testid=claim-count").classes("sk-field")
            batch = ui.input(view.t("Batch"), placeholder="line-7")
            batch.props("outlined dense data-testid=claim-batch").classes("sk-field")
        made = ui.element("div").classes("sk-part")

        async def create() -> None:
            try:
                request = ClaimIn(
                    profile=(profile.value or "").strip(),
                    labels=parse_labels(labels.value or ""),
                    ttl_s=(hours.value or 0) * 3600,
                    count=min(int(count.value or 0), _MAX_CLAIMS),
                    batch=(batch.value or "").strip() or None,
                )
                files = await view.api.create_claims(request)
            except ValidationError as error:
                view.note(describe(error), "negative")
            except BadLabels as error:
                view.note(str(error), "negative")
            except ApiError as error:
                view.note(error.message, "negative")
            else:
                made.clear()
                with made:
                    _hand_out(view, files)
                await live.refresh()

        with ui.element("div").classes("sk-flow"):
            button(view.t("Create"), icon="key", main=True, testid="claim-create").on(
                "click", create
            )
    with card(view.t("Claims"), body=False):

        async def act(_act: str, claim_id: str) -> None:
            title = view.t("Revoke the claim?")
            body = view.t("Its file becomes useless. A device that has used it stays enrolled.")
            if await confirm(view, title, body, view.t("Revoke"), danger=True) is not None:
                await view.act(view.api.revoke_claim(claim_id), view.t("Revoked"))
                await live.refresh()

        table = Rows(
            [
                Column("claim", view.t("Claim")),
                Column("state", view.t("State")),
                Column("profile", view.t("Profile")),
                Column("batch", view.t("Batch")),
                Column("labels", view.t("Labels")),
                Column("created", view.t("Created"), "sk-nowrap"),
                Column("expires", view.t("Expires"), "sk-nowrap"),
                Column("do", "", "sk-nowrap"),
            ],
            testid="claim-row",
        ).on_act(act)
        none = ui.element("div")

        def show(claims: list[ClaimOut]) -> None:
            table.show([_row(view, claim) for claim in claims])
            table.set_visibility(bool(claims))
            none.clear()
            if not claims:
                with none:
                    empty(
                        "key",
                        view.t("No claims yet"),
                        view.t("Create one above and copy its file to the new device."),
                    )

        live.part(show, keep=True)
    await live.start()


def _hand_out(view: View, files: list[ClaimFile]) -> None:
    """The files of fresh claims: the only time that their secrets can be seen."""
    name, content = pack(files)
    with ui.element("div").classes("sk-banner sk-banner--ok").props("data-testid=claim-made"):
        ui.icon("check_circle")
        Tag(
            "span",
            view.many(
                len(files),
                "1 claim made. Download it now: its secret is not shown again.",
                "{n} claims made. Download them now: their secrets are not shown again.",
            ),
            "sk-grow",
        )
        fetch = button(view.t("Download"), icon="download", main=True, testid="claim-download")
        fetch.on_click(lambda: ui.download.content(content, name))
    Tag("span", view.t("On the device:"), "sk-dim")
    first = f"claim-{files[0].claim_id}.json" if files else "CLAIM.json"
    Tag(
        "pre",
        f"skerry-agent enrol --dir skerry --claim {first}\nskerry-agent run --dir skerry",
        "sk-pre",
    )


def pack(files: list[ClaimFile]) -> tuple[str, bytes]:
    """Name and content of the download: one claim as JSON, several as a zip of such files."""
    texts = {f"claim-{file.claim_id}.json": file.model_dump_json(indent=2) for file in files}
    if len(texts) == 1:
        name, text = next(iter(texts.items()))
        return name, text.encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            archive.writestr(name, text)
    return "claims.zip", buffer.getvalue()


def _state(claim: ClaimOut, now: float) -> str:
    if claim.used_by:
        return "used"
    if claim.revoked:
        return "revoked"
    return "expired" if claim.expires_at <= now else "open"


def _row(view: View, claim: ClaimOut) -> Row:
    state = _state(claim, time.time())
    shown = [tables.chip(view, state, testid="claim-state")]
    if claim.used_by:
        shown.append(tables.link(claim.used_by, f"/devices/{claim.used_by}"))
    elif claim.device:
        shown.append(tables.sub(claim.device))
    return Row(
        id=claim.id,
        cells={
            "claim": [tables.mono(claim.id)],
            "state": shown,
            "profile": [tables.text(claim.profile)],
            "batch": [tables.text(claim.batch or formats.NONE)],
            "labels": [tables.tag(f"{k}={v}") for k, v in sorted(claim.labels.items())],
            "created": [tables.ago(claim.created_at)],
            "expires": [tables.ago(claim.expires_at)],
            "do": [tables.press("revoke", view.t("Revoke"), bad=True, testid="claim-revoke")]
            if state == "open"
            else [],
        },
        data={"state": state},
    )
