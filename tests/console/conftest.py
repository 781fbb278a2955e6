"""The console on a control plane in memory, in a process of its own, and a browser to drive it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

HERE = Path(__file__).parent
CHROMIUM = "/usr/bin/chromium"


@dataclass(frozen=True)
class Console:
    """Address of the running console."""

    url: str

    def turn(self, knob: str, value: str = "") -> None:
        """Change the control plane behind the console."""
        httpx.post(f"{self.url}/double/{knob}", params={"value": value}).raise_for_status()


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    directory = tmp_path_factory.mktemp("console")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join(filter(None, (str(HERE.parents[1]), os.environ.get("PYTHONPATH", ""))))
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "double_app.py"), str(port)],
            cwd=directory,
            env={
                # NiceGUI behaves otherwise when it finds itself in a test
                **{key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"},
                "PYTHONPATH": path,
            },
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    httpx.get(f"{url}/login")
                    break
                except httpx.TransportError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        pytest.fail((directory / "log").read_text())
                    time.sleep(0.1)
            yield Console(url)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=20)
    trouble = (directory / "log").read_text()
    assert "Traceback" not in trouble, trouble


@pytest.fixture
def console(running: Console) -> Console:
    """The console with a fresh, full fleet behind it."""
    running.turn("reset")
    return running


@dataclass(frozen=True)
class Tab:
    """A browser tab that remembers what went wrong in it."""

    page: Page
    context: BrowserContext
    troubles: list[str]


@pytest.fixture
def tab(browser: Browser, console: Console) -> Iterator[Tab]:
    """A tab that has not signed in.  Fails on script errors and on requests to other machines."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 860}, accept_downloads=True, locale="en-US"
    )
    page = context.new_page()
    page.set_default_timeout(30_000)
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(f"script error: {error}"))
    context.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((console.url, "data:", "blob:"))
            else troubles.append(f"outside request: {request.url}")
        ),
    )
    yield Tab(page, context, troubles)
    context.close()
    assert not troubles


@pytest.fixture
def page(tab: Tab, console: Console) -> Page:
    """A tab signed in as an operator, on the fleet page."""
    tab.page.goto(f"{console.url}/?token=operator-token")
    tab.page.get_by_test_id("device-row").first.wait_for()
    return tab.page
