from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import expect

from edge_agent.wire.messages import ClaimFile

pytestmark = [pytest.mark.slow, pytest.mark.browser]


def test_the_fleet_is_cut_into_pages_on_the_server(page):
    rows = page.get_by_test_id("device-row")
    expect(rows).to_have_count(100)
    expect(page.get_by_test_id("pager")).to_have_text("1–100 of 230")
    page.get_by_test_id("page-next").click()
    page.get_by_test_id("page-next").click()
    expect(rows).to_have_count(30)
    expect(page.get_by_test_id("page-next")).to_be_disabled()
    page.get_by_test_id("page-previous").click()
    expect(page.get_by_test_id("pager")).to_have_text("101–200 of 230")


def test_search_label_and_presence_narrow_the_list(page):
    rows = page.get_by_test_id("device-row")
    page.get_by_test_id("search").fill("edge-002")
    expect(rows).to_have_count(10)
    page.get_by_test_id("label").fill("site=busan")
    expect(rows).to_have_count(3)
    page.get_by_test_id("presence").get_by_text("Offline").click()
    expect(rows).to_have_count(1)
    expect(rows.first).to_have_attribute("data-state", "offline")
    page.get_by_test_id("label").fill("site=nowhere")
    expect(rows).to_have_count(0)
    expect(page.get_by_test_id("empty")).to_contain_text("No device matches")


def test_a_filter_starts_again_at_the_first_page(page):
    page.get_by_test_id("page-next").click()
    expect(page.get_by_test_id("pager")).to_have_text("101–200 of 230")
    page.get_by_test_id("search").fill("edge-0001")
    expect(page.get_by_test_id("device-row")).to_have_count(1)


def test_the_profile_filter_offers_what_the_fleet_has(page):
    page.get_by_test_id("profile").click()
    page.get_by_role("option", name="raspberry-pi-5").click()
    expect(page.get_by_test_id("device-row")).to_have_count(76)


def test_presence_changes_without_a_reload(page, console):
    row = page.locator("[data-testid=device-row][data-id=edge-0000]")
    expect(row).to_have_attribute("data-state", "online")
    console.turn("offline", "edge-0000")
    expect(row).to_have_attribute("data-state", "offline")


def test_a_row_leads_to_its_device_and_back_is_the_list(page, console):
    page.locator("[data-id=edge-0004]").click()
    expect(page).to_have_url(f"{console.url}/devices/edge-0004")
    expect(page.get_by_test_id("twin-state")).to_have_text("catching up")
    page.go_back()
    expect(page.get_by_test_id("device-row")).to_have_count(100)


def test_a_device_shows_twin_history_figures_and_inventory(page, console):
    page.goto(f"{console.url}/devices/edge-0000")
    expect(page.get_by_test_id("twin-state")).to_have_text("in step")
    expect(page.get_by_test_id("history-phase").first).to_have_text("healthy")
    expect(page.get_by_text("p99 12.4 ms above the limit")).to_be_visible()
    expect(page.locator(".nicegui-echart svg")).to_have_count(2)
    expect(page.get_by_text("avx512_vnni")).to_be_visible()


def test_an_unknown_device_is_named_in_the_answer(page, console):
    page.goto(f"{console.url}/devices/nope")
    expect(page.get_by_test_id("empty")).to_contain_text("no device 'nope'")


def test_a_device_is_revoked_with_a_reason_that_everybody_sees(page, console):
    page.goto(f"{console.url}/devices/edge-0002")
    page.get_by_test_id("device-revoke").click()
    page.get_by_test_id("confirm-reason").fill("stolen from the site")
    page.get_by_test_id("confirm-yes").click()
    expect(page.get_by_test_id("device-state")).to_have_text("revoked")
    expect(page.get_by_test_id("device-revoked-reason")).to_have_text("stolen from the site")


def _download(page) -> bytes:
    with page.expect_download() as download:
        page.get_by_test_id("claim-download").click()
    return Path(download.value.path()).read_bytes()


def test_a_claim_is_created_and_its_file_downloaded(page, console):
    page.goto(f"{console.url}/enrolment")
    page.get_by_test_id("claim-labels").fill("site=busan, line=3")
    page.get_by_test_id("claim-batch").fill("line-7")
    page.get_by_test_id("claim-create").click()
    expect(page.get_by_test_id("claim-made")).to_contain_text("1 claim made")
    claim = ClaimFile.decode(_download(page))
    row = page.locator(f"[data-testid=claim-row][data-id={claim.claim_id}]")
    expect(row).to_contain_text("site=busan")
    expect(row).to_contain_text("line-7")
    row.get_by_test_id("claim-revoke").click()
    page.get_by_test_id("confirm-yes").click()
    expect(row).to_have_attribute("data-state", "revoked")


def test_many_claims_come_as_one_archive(page, console):
    page.goto(f"{console.url}/enrolment")
    page.get_by_test_id("claim-count").fill("3")
    page.get_by_test_id("claim-create").click()
    expect(page.get_by_test_id("claim-made")).to_contain_text("3 claims made")
    archive = zipfile.ZipFile(io.BytesIO(_download(page)))
    secrets = {json.loads(archive.read(name))["secret"] for name in archive.namelist()}
    assert len(secrets) == 3


def test_a_wrong_profile_is_refused_with_the_line_of_the_control_plane(page, console):
    page.goto(f"{console.url}/enrolment")
    page.get_by_test_id("claim-profile").fill("this-machin")
    page.get_by_test_id("claim-create").click()
    expect(page.get_by_text("did you mean 'this-machine'?")).to_be_visible()


def test_the_audit_turns_its_pages(page, console):
    page.goto(f"{console.url}/audit")
    rows = page.get_by_test_id("audit-row")
    expect(rows).to_have_count(100)
    expect(rows.first).to_contain_text("edge-0129")
    page.get_by_test_id("audit-older").click()
    expect(rows).to_have_count(30)
    page.get_by_test_id("audit-newer").click()
    expect(rows).to_have_count(100)
    expect(rows.first.locator("time")).to_have_text(re.compile(r"\d{4}"))
