"""The whole loop, and what a person sees of it in the browser."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.conftest import ROOT, Demo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PAGE_TIMEOUT_MS = 20_000


@pytest.fixture(scope="module")
def page(browser: Browser, demo: Demo) -> Page:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PAGE_TIMEOUT_MS)
    page.goto(demo.console_url)
    return page


def test_demo_holds_every_step_and_ends_with_a_summary(demo: Demo) -> None:
    assert len(re.findall(r"✓ +\d+ ", demo.output)) == 11
    assert "all steps hold" in demo.output


def test_demo_leaves_a_report_with_a_picture_of_the_frontier(demo: Demo) -> None:
    report = (demo.directory / "report.html").read_text(encoding="utf-8")
    assert "<svg" in report or "data:image/png" in report
    assert "ort-int8" in report


@pytest.mark.browser
def test_console_shows_the_devices(page: Page, demo: Demo) -> None:
    page.goto(_address(demo, "/"))
    rows = page.get_by_test_id("device-row")
    expect(rows).to_have_count(3, timeout=PAGE_TIMEOUT_MS)
    for name in ("skerry-north", "skerry-east", "skerry-west"):
        expect(rows.filter(has_text=name)).to_contain_text("digits v2")
    for row in rows.all():
        expect(row.get_by_test_id("device-state")).to_have_text("online", ignore_case=True)


@pytest.mark.browser
def test_console_shows_both_versions_of_the_model(page: Page, demo: Demo) -> None:
    page.goto(_address(demo, "/models"))
    rows = page.get_by_test_id("model-version")
    expect(rows).to_have_count(2, timeout=PAGE_TIMEOUT_MS)
    states = page.get_by_test_id("model-state").all_inner_texts()
    assert [state.strip().lower() for state in states] == ["champion", "retired"]


@pytest.mark.browser
def test_console_shows_the_rollout(page: Page, demo: Demo) -> None:
    page.goto(_address(demo, "/rollouts"))
    newest = page.get_by_test_id("rollout-row").first
    expect(newest).to_contain_text("digits v2", timeout=PAGE_TIMEOUT_MS)
    expect(newest.get_by_test_id("rollout-state")).to_have_text("completed", ignore_case=True)


@pytest.mark.browser
def test_console_draws_the_drift_chart(page: Page, demo: Demo) -> None:
    page.goto(_address(demo, "/drift"))
    chart = page.get_by_test_id("drift-chart")
    expect(chart.locator("svg")).to_be_visible(timeout=PAGE_TIMEOUT_MS)
    expect(chart).to_contain_text("Hotelling T²")
    expect(chart).to_contain_text("Threshold")
    verdicts = page.get_by_test_id("drift-row").get_by_test_id("drift-verdict").all_inner_texts()
    assert "drift" in [verdict.strip().lower() for verdict in verdicts]


def _address(demo: Demo, path: str) -> str:
    return demo.console_url.partition("/?")[0] + path


def test_demo_directory_holds_one_control_plane_and_three_devices(demo: Demo) -> None:
    assert (demo.directory / "cloud" / "skerry.db").is_file()
    devices = [path.parent for path in Path(demo.directory).glob("devices/*/agent.toml")]
    assert len(devices) == 3


def test_a_step_that_does_not_hold_ends_the_demo_with_what_failed(tmp_path: Path) -> None:
    """Without a broker the first step fails; the reason is one line, the exit code 1."""
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        env={
            **os.environ, "DEMO_DIR": str(tmp_path / "demo"), "COLUMNS": "300",
            "SKERRY_MOSQUITTO": str(tmp_path / "missing"),
        },
    )  # fmt: skip
    assert done.returncode == 1
    assert "✗" in done.stdout
    assert "SKERRY_MOSQUITTO" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
