"""A device's commands in the browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.slow, pytest.mark.browser]


def test_commands_are_listed_with_their_answers_and_what_they_brought(page, console):
    page.goto(f"{console.url}/devices/edge-0004")
    states = page.get_by_test_id("command-state")
    expect(states).to_have_text(["timed out", "done", "refused"])
    expect(page.get_by_test_id("command-row").last).to_contain_text("an update is under way")
    with page.expect_download() as download:
        page.get_by_test_id("command-download").click()
    assert download.value.suggested_filename.startswith("edge-0004-diagnostics-")
    assert download.value.suggested_filename.endswith(".zip")


def test_a_command_is_asked_for_by_a_button_and_taken_back(page, console):
    page.goto(f"{console.url}/devices/edge-0001")
    expect(page.get_by_text("No commands yet")).to_be_visible()
    page.get_by_test_id("command-logs").click()
    expect(page.get_by_test_id("command-state")).to_have_text(["queued"])
    page.get_by_test_id("command-cancel").click()
    expect(page.get_by_test_id("command-state")).to_have_text(["cancelled"])


def test_a_restart_asks_first_and_does_nothing_when_it_is_declined(page, console):
    page.goto(f"{console.url}/devices/edge-0001")
    page.get_by_test_id("command-restart").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("No commands yet")).to_be_visible()
    page.get_by_test_id("command-restart").click()
    page.get_by_test_id("confirm-reason").fill("stuck camera")
    page.get_by_test_id("confirm-yes").click()
    expect(page.get_by_test_id("command-row")).to_contain_text("Restart")


def test_sampling_is_changed_for_a_time_and_said_to_fall_back(page, console):
    page.goto(f"{console.url}/devices/edge-0001")
    page.get_by_test_id("command-sampling").click()
    expect(page.get_by_text("It falls back by itself")).to_be_visible()
    page.get_by_test_id("confirm-yes").click()
    expect(page.get_by_test_id("command-row")).to_contain_text("Sampling")
