from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.slow, pytest.mark.browser]


def test_models_list_their_versions_with_states(page):
    page.get_by_test_id("nav-models").click()
    rows = page.get_by_test_id("model-version")
    expect(rows).to_have_count(3)
    expect(rows.first).to_have_attribute("data-version", "3")
    expect(rows.nth(1).get_by_test_id("model-state")).to_have_text("champion")


def test_a_version_shows_its_frontier_pool_gates_and_lineage(page, console):
    page.goto(f"{console.url}/models/digits/3")
    chart = page.get_by_test_id("frontier-chart")
    expect(chart.locator("svg")).to_be_visible()
    expect(chart).to_contain_text("large/openvino-int8")  # the selected one carries its name
    expect(page.get_by_test_id("variant-row")).to_have_count(12)
    expect(page.get_by_test_id("variant-selected")).to_have_count(2)
    expect(page.get_by_test_id("gate")).to_have_count(3)
    expect(page.get_by_test_id("gate-verdict").nth(1)).to_have_text("insufficient")
    expect(page.get_by_test_id("lineage")).to_contain_text("build-3b7e2")


def test_every_candidate_can_be_downloaded(page, console):
    page.goto(f"{console.url}/models/digits/3")
    with page.expect_download() as download:
        page.get_by_test_id("variant-get").first.click()
    assert Path(download.value.path()).read_bytes().startswith(b"bundle of 3")
    assert download.value.suggested_filename.endswith(".bundle")


def test_a_candidate_is_approved_published_and_rolled_out(page, console):
    page.goto(f"{console.url}/models/digits/3")
    state = page.get_by_test_id("model-state")
    expect(state).to_have_text("candidate")
    page.get_by_test_id("approve").click()
    expect(page.get_by_text("1 gate lacks data")).to_be_visible()
    page.get_by_test_id("confirm-reason").fill("looked at class 8 myself")
    page.get_by_test_id("confirm-yes").click()
    expect(state).to_have_text("approved")
    expect(page.get_by_text("looked at class 8 myself")).to_be_visible()
    page.get_by_test_id("publish").click()
    page.get_by_test_id("confirm-yes").click()
    expect(state).to_have_text("published")
    page.get_by_test_id("roll-out").click()
    expect(page).to_have_url(f"{console.url}/rollouts/new?model=digits&version=3")
    expect(page.get_by_text("digits v3 · published")).to_be_visible()


def test_a_person_may_publish_another_candidate_than_the_optimizer_chose(page, console):
    page.goto(f"{console.url}/models/digits/3")
    page.get_by_test_id("approve").click()
    page.get_by_test_id("confirm-yes").click()
    page.get_by_test_id("publish").click()
    page.get_by_role("combobox").last.click()
    page.get_by_role("option", name="small/ort-int8").click()
    page.get_by_test_id("confirm-yes").click()
    expect(page.get_by_test_id("model-state")).to_have_text("published")
    expect(page.get_by_text("variants {'this-machine': 301}")).to_be_visible()


def test_a_cancelled_question_changes_nothing(page, console):
    page.goto(f"{console.url}/models/digits/3")
    page.get_by_test_id("reject").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".q-dialog")).to_have_count(0)
    expect(page.get_by_test_id("model-state")).to_have_text("candidate")


def test_rollouts_are_listed_with_state_and_share(page):
    page.get_by_test_id("nav-rollouts").click()
    rows = page.get_by_test_id("rollout-row")
    expect(rows).to_have_count(4)
    expect(rows.first).to_have_attribute("data-state", "running")
    expect(rows.nth(1)).to_contain_text("3 of 5 responders failed")


def test_a_rollout_shows_waves_evidence_and_what_needs_a_look_first(page, console):
    page.goto(f"{console.url}/rollouts/r-7f3a")
    expect(page.get_by_test_id("wave")).to_have_count(3)
    expect(page.get_by_test_id("wave-state").nth(1)).to_have_text("offering")
    gate = page.get_by_test_id("rollout-gate").first
    gate.get_by_text("Evidence").click()
    expect(gate).to_contain_text('"responders": 1')
    first = page.get_by_test_id("assignment-row").first
    expect(first).to_have_attribute("data-phase", "rejected")
    expect(first).to_contain_text("untrusted_metadata")


def test_a_rollout_is_paused_resumed_halted_and_rolled_back(page, console):
    page.goto(f"{console.url}/rollouts/r-7f3a")
    state = page.get_by_test_id("rollout-state").first
    page.get_by_test_id("rollout-pause").click()
    expect(state).to_have_text("paused")
    page.get_by_test_id("rollout-resume").click()
    expect(state).to_have_text("running")
    page.get_by_test_id("rollout-halt").click()
    page.get_by_test_id("confirm-yes").click()
    expect(state).to_have_text("halted")
    expect(page.get_by_test_id("rollout-pause")).to_have_count(0)
    page.get_by_test_id("rollout-rollback").click()
    page.get_by_test_id("confirm-yes").click()
    expect(state).to_have_text("rolling back")


def test_who_created_a_rollout_sees_why_they_cannot_approve_it(page, console):
    page.goto(f"{console.url}/rollouts/r-appr")
    expect(page.get_by_test_id("rollout-approve")).to_be_disabled()
    expect(page.get_by_test_id("rollout-approve-refused")).to_contain_text("a second person")
    expect(page.get_by_test_id("rollout-why")).to_contain_text("pending_approval")


def test_a_rollout_is_started_from_the_form(page, console):
    page.get_by_test_id("nav-rollouts").click()
    page.get_by_test_id("rollout-new").click()
    page.get_by_test_id("rollout-waves").fill("1, 50%, 100%")
    page.get_by_test_id("rollout-start").click()
    expect(page).to_have_url(f"{console.url}/rollouts/r-new1")
    expect(page.get_by_test_id("wave")).to_have_count(3)


def test_bad_waves_are_named_and_nothing_starts(page, console):
    page.goto(f"{console.url}/rollouts/new")
    page.get_by_test_id("rollout-waves").fill("1, half")
    page.get_by_test_id("rollout-start").click()
    expect(page.get_by_test_id("form-problem")).to_contain_text("'half' is not a size")
    expect(page).to_have_url(f"{console.url}/rollouts/new")


def test_drift_is_a_picture_that_follows_the_checks(page, console):
    page.get_by_test_id("nav-drift").click()
    chart = page.get_by_test_id("drift-chart")
    expect(chart.locator("svg")).to_be_visible()
    fleet = page.locator("[data-testid=drift-scope][data-scope=fleet]")
    expect(fleet.get_by_test_id("drift-verdict")).to_have_text("drift")
    console.turn("drift")
    expect(fleet.get_by_test_id("drift-verdict")).to_have_attribute("data-state", "ok")
    expect(page.get_by_test_id("drift-row").first).to_have_attribute("data-verdict", "ok")


def test_one_device_can_be_looked_at_by_itself(page, console):
    page.goto(f"{console.url}/drift")
    page.locator("[data-testid=drift-scope][data-scope=edge-0001]").click()
    expect(page.get_by_role("heading", name="digits · edge-0001")).to_be_visible()
    expect(page.get_by_test_id("drift-row").first).to_have_attribute("data-scope", "edge-0001")


def test_collection_is_counted_by_device_and_class(page, console):
    page.goto(f"{console.url}/drift")
    expect(page.get_by_test_id("collection-total")).to_have_text("4,812")
    expect(page.locator(".sk-bars")).to_have_count(2)


def test_a_job_shows_its_progress_as_it_goes(page, console):
    page.get_by_test_id("nav-jobs").click()
    row = page.locator("[data-testid=job-row][data-id=build-4c1d]")
    expect(row).to_contain_text("62 %")
    console.turn("progress", "0.81")
    expect(row).to_contain_text("81 %")
    row.get_by_test_id("job-cancel").click()
    expect(row).to_have_attribute("data-state", "cancelled")


def test_a_failed_job_shows_its_one_line(page, console):
    page.goto(f"{console.url}/jobs/build-2b7e2")
    expect(page.get_by_test_id("job-error")).to_contain_text("did you mean 'build'?")


def test_a_job_is_started_for_a_project(page, console):
    page.goto(f"{console.url}/jobs")
    page.get_by_test_id("job-new").click()
    page.get_by_test_id("confirm-yes").click()
    expect(page.get_by_test_id("job-row")).to_have_count(4)
    expect(page.get_by_test_id("job-row").first).to_have_attribute("data-state", "queued")


def test_a_report_opens_beside_the_console_and_cannot_run_scripts(page, tab, console):
    page.goto(f"{console.url}/jobs")
    with tab.context.expect_page() as opened:
        page.get_by_test_id("job-report").click()
    expect(opened.value.get_by_role("heading", name="Report")).to_be_visible()
    expect(opened.value).not_to_have_title(re.compile("ran"))
