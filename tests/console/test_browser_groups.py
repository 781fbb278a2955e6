from __future__ import annotations

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.slow, pytest.mark.browser]


def test_a_query_narrows_the_fleet_and_a_wrong_one_shows_its_place(page):
    rows = page.get_by_test_id("device-row")
    box = page.get_by_test_id("query")
    box.fill('site == "busan" and id like "edge-002*"')
    expect(rows).to_have_count(3)
    box.fill('site = "busan"')
    problem = page.get_by_test_id("query-problem")
    expect(problem).to_have_text("site = \"busan\"\n     ^\ncolumn 6: found '=', expected '=='")
    expect(rows).to_have_count(3)  # as before it went wrong
    box.fill("")
    expect(problem).to_be_hidden()
    expect(rows).to_have_count(100)


def test_a_group_is_made_leads_to_its_devices_and_goes(page, console):
    page.goto(f"{console.url}/groups")
    page.get_by_test_id("group-name").fill("busan")
    page.get_by_test_id("group-query").fill("site ==")
    page.get_by_test_id("group-create").click()
    expect(page.get_by_test_id("group-query-problem")).to_contain_text("column 8: found the end")
    page.get_by_test_id("group-query").fill('site == "busan" and id like "edge-002*"')
    expect(page.get_by_test_id("group-query-problem")).to_be_hidden()
    page.get_by_test_id("group-create").click()
    row = page.get_by_test_id("group-row")
    expect(row).to_contain_text("busan")
    page.get_by_role("link", name="busan").click()
    expect(page.get_by_test_id("query")).to_have_value('group("busan")')
    expect(page.get_by_test_id("device-row")).to_have_count(3)
    page.goto(f"{console.url}/groups")
    page.get_by_test_id("group-delete").click()
    page.get_by_test_id("confirm-yes").click()
    expect(row).to_have_count(0)
