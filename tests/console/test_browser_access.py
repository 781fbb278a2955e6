from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.slow, pytest.mark.browser]


def test_a_reader_without_a_session_is_asked_to_sign_in_and_comes_back(tab, console):
    page = tab.page
    page.goto(f"{console.url}/models/digits/3?x=1")
    page.get_by_test_id("login-token").fill("operator-token")
    page.get_by_test_id("login-submit").click()
    expect(page).to_have_url(f"{console.url}/models/digits/3?x=1")
    expect(page.get_by_test_id("variant-row").first).to_be_visible()


def test_a_wrong_token_gets_one_clear_line_and_no_session(tab, console):
    page = tab.page
    page.goto(f"{console.url}/login")
    page.get_by_test_id("login-token").fill("nonsense")
    page.get_by_test_id("login-submit").click()
    expect(page.get_by_test_id("login-problem")).to_contain_text("does not know this token")
    page.goto(console.url)
    expect(page).to_have_url(re.compile("/login"))


def test_a_link_with_a_token_signs_in_and_drops_it_from_the_address(tab, console):
    page = tab.page
    page.goto(f"{console.url}/rollouts?token=operator-token")
    expect(page).to_have_url(f"{console.url}/rollouts")
    expect(page.get_by_test_id("rollout-row").first).to_be_visible()


def test_a_link_with_a_wrong_token_says_so(tab, console):
    tab.page.goto(f"{console.url}/?token=nonsense")
    expect(tab.page.get_by_test_id("login-problem")).to_contain_text("does not know this token")


def test_a_page_after_signing_in_never_leaves_the_console(tab, console):
    page = tab.page
    page.goto(f"{console.url}/login?next=//example.org/")
    page.get_by_test_id("login-token").fill("operator-token")
    page.get_by_test_id("login-submit").click()
    expect(page).to_have_url(f"{console.url}/")


def test_signing_out_ends_the_session(page, console):
    page.get_by_test_id("sign-out").click()
    expect(page).to_have_url(re.compile("/login$"))
    page.goto(f"{console.url}/models")
    expect(page).to_have_url(re.compile("/login"))


def test_a_viewer_is_told_what_a_command_takes(tab, console):
    page = tab.page
    page.goto(f"{console.url}/rollouts/r-7f3a?token=viewer-token")
    page.get_by_test_id("rollout-pause").click()
    expect(page.get_by_text("role viewer may not do this; it takes operator")).to_be_visible()


def test_korean_is_one_click_away_and_stays(page, console):
    page.get_by_test_id("lang-ko").click()
    expect(page.get_by_role("heading", name="기기")).to_be_visible()
    page.goto(f"{console.url}/rollouts/r-7f3a")
    expect(page.get_by_test_id("rollout-state").first).to_have_text("진행 중")
    expect(page.get_by_test_id("rollout-state").first).to_have_attribute("data-state", "running")
    expect(page.locator("time").first).to_have_text(re.compile("전"))
    page.get_by_test_id("lang-en").click()
    expect(page.get_by_test_id("rollout-state").first).to_have_text("running")


def test_a_wrong_address_says_so_and_an_unknown_route_answers_json(page, console):
    page.goto(f"{console.url}/nothing")
    expect(page.get_by_role("heading", name="There is no such page")).to_be_visible()
    answer = page.request.get(
        f"{console.url}/v1/nothing", headers={"Authorization": "Bearer operator-token"}
    )
    assert answer.status == 404
    assert answer.json()["error"]


def test_an_outage_keeps_the_last_picture_with_a_line_above_it(page, console):
    console.turn("broken", "yes")
    expect(page.get_by_test_id("problem")).to_contain_text("database is locked")
    expect(page.get_by_test_id("device-row")).to_have_count(100)
    console.turn("broken", "no")
    expect(page.get_by_test_id("problem")).to_have_count(0)


PAGES = (
    "/", "/devices/edge-0000", "/models", "/models/digits/2", "/rollouts", "/rollouts/r-51c0",
    "/rollouts/new", "/drift", "/jobs", "/jobs/build-3b7e2", "/enrolment", "/audit",
)  # fmt: skip


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_the_window(page, console, width):
    page.set_viewport_size({"width": width, "height": 844})
    for path in PAGES:
        page.goto(console.url + path)
        page.locator(".sk-card").first.wait_for()
        expect(page.locator(".sk-loading")).to_have_count(0)
        extra = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert extra <= 0, f"{path} is {extra} px wider than {width}"


def test_on_a_phone_the_menu_opens_leads_on_and_closes(page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.reload()
    page.get_by_test_id("device-row").first.wait_for()
    link = page.get_by_test_id("nav-models")
    expect(link).not_to_be_in_viewport()
    page.get_by_test_id("menu").click()
    link.click()
    expect(page.get_by_test_id("model-version").first).to_be_visible()
    expect(link).not_to_be_in_viewport()


@pytest.mark.parametrize(
    "path",
    ["/", "/models", "/rollouts", "/rollouts/new", "/drift", "/jobs", "/enrolment", "/audit"],
)
def test_an_empty_page_says_what_to_do_next(tab, console, path):
    console.turn("reset", "empty")
    tab.page.goto(f"{console.url}{path}?token=operator-token")
    expect(tab.page.get_by_test_id("empty")).to_be_visible()
