"""Commands of the device's own operator: on the administrative socket, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.serve.administration import MAX_VALUE_CHARS

from .conftest import Running, served


@pytest.mark.parametrize("name", ["pause", "resume", "install"])
def test_a_command_is_taken_on_the_administrative_socket_alone(
    quick_serving: Running, name: str
) -> None:
    told = {"directory": "/media/stick"} if name == "install" else {}
    path = f"/update/{name}"
    assert quick_serving.ask("POST", path, told).status == 404
    answer = quick_serving.ask_unix(quick_serving.unix_path, "POST", path, told)
    assert (answer.status, answer.json) == (200, {"told": told})


@pytest.mark.parametrize(
    ("name", "told", "message"),
    [
        ("install", {}, "must be told directory"),
        ("install", {"directory": ""}, "empty"),
        ("install", {"directory": "/a\0b"}, "zero character"),
        ("install", {"directory": "/" * (MAX_VALUE_CHARS + 1)}, "too long"),
        ("install", {"directory": 1}, "not valid"),
        ("install", {"directory": "/a", "force": "yes"}, "nothing else"),
        ("pause", {"until": "noon"}, "must be told nothing"),
        ("pause", "[1]", "not valid"),
    ],
)
def test_a_command_that_is_told_wrongly_is_not_carried_out(
    quick_serving: Running, name: str, told: dict[str, object] | str, message: str
) -> None:
    answer = quick_serving.ask_unix(quick_serving.unix_path, "POST", f"/update/{name}", told)
    assert answer.status == 400
    assert message in answer.json["error"]


def test_a_command_that_cannot_be_carried_out_now_says_why(quick_serving: Running) -> None:
    answer = quick_serving.ask_unix(
        quick_serving.unix_path, "POST", "/update/install", {"directory": "/occupied"}
    )
    assert (answer.status, answer.json) == (409, {"error": "another install is under way"})


def test_unknown_commands_and_methods_are_refused(quick_serving: Running) -> None:
    ask = quick_serving.ask_unix
    assert ask(quick_serving.unix_path, "POST", "/update/erase", {}).status == 404
    assert ask(quick_serving.unix_path, "GET", "/update/pause").status == 405


def test_an_agent_without_commands_says_so(tmp_path: Path) -> None:
    with served(tmp_path, commands={}) as running:
        assert running.ask_unix(running.unix_path, "POST", "/update/pause", {}).status == 501
