"""Settings of agent.toml, seen from outside of a running agent."""

from __future__ import annotations

import grp
import json
import os
import socket
import stat
import subprocess
import sys

import pytest

from .conftest import MODEL, Process, until

pytestmark = pytest.mark.slow

TOKEN = "token-of-the-test-0123456789"
BODY = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0, 1, 0, 0]}]}
INFER = f"/v2/models/{MODEL}/infer"


@pytest.fixture(scope="module")
def release(plane, tmp_path_factory):
    return plane.release(1, tmp_path_factory.mktemp("release"))


@pytest.fixture
def enrolled(plane, agents, tmp_path, release):
    """Makes an agent with more settings, assigned its first version."""

    def make(name: str, settings: str) -> Process:
        agent = agents(name)
        claim = plane.claim(tmp_path / f"{name}.json")
        done = agent.command("enrol", "--claim", str(claim), "--name", name)
        assert done.returncode == 0, done.stderr
        with (agent.directory / "agent.toml").open("a") as file:
            file.write(settings)
        plane.assign(name, release)
        return agent

    return make


def infer(agent: Process, **how) -> int:
    return agent.call("POST", INFER, BODY, **how)[0]


def test_token_socket_debug_grpc_and_json_logs(enrolled, free_ports):
    [grpc_port] = free_ports(1)
    group = grp.getgrgid(os.getgid()).gr_name
    agent = enrolled(
        "guarded",
        'http_token_file = "token"\nhttp_socket = "predict.sock"\n'
        f'http_socket_group = "{group}"\ndebug = true\nlog_format = "json"\n'
        f"grpc_port = {grpc_port}\n",
    )
    (agent.directory / "token").write_text(TOKEN + "\n")
    (agent.directory / "token").chmod(0o600)
    agent.start()
    about = agent.about()
    socket_path = agent.directory / "predict.sock"
    assert (about["grpc_port"], about["predict_socket"]) == (grpc_port, str(socket_path))
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o660
    until(lambda: infer(agent, unix=socket_path) == 200, what=agent.log())

    right = {"Authorization": f"Bearer {TOKEN}"}
    assert infer(agent) == 401
    assert infer(agent, headers={"Authorization": "Bearer wrong"}) == 401
    assert infer(agent, headers=right) == 200
    assert infer(agent, unix=about["unix_socket"]) == 200
    assert agent.call("GET", "/status", unix=socket_path)[0] != 200

    traced = {**BODY, "parameters": {"trace": True}}
    status, answer = agent.call("POST", INFER, traced, headers=right)
    assert status == 200, answer
    assert any(output["name"].startswith("step:") for output in answer["outputs"])

    by_grpc = f"""
import sys, numpy as np, tritonclient.grpc as triton
client = triton.InferenceServerClient("127.0.0.1:{grpc_port}")
x = triton.InferInput("x", [1, 4], "FP32")
x.set_data_from_numpy(np.array([[0, 1, 0, 0]], np.float32))
headers = {{"authorization": "Bearer " + sys.argv[1]}}
try:
    print(client.infer({MODEL!r}, [x], headers=headers).as_numpy("label"))
except triton.InferenceServerException as error:
    print(error.status())
"""
    for token, said in ((TOKEN, "[1]"), ("wrong", "StatusCode.UNAUTHENTICATED")):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", by_grpc, token],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == said

    assert agent.stop() == 0, agent.log()
    assert not socket_path.exists()
    events = [json.loads(line) for line in agent.log().splitlines()]
    [started] = [each for each in events if each.get("event") == "agent.started"]
    assert (started["device"], started["http_port"]) == ("guarded", about["http_port"])
    assert TOKEN not in agent.log()


def test_a_client_that_asks_too_often_is_slowed_down(enrolled):
    agent = enrolled("busy", "http_rate_per_client = 0.5\nhttp_burst_per_client = 3\n")
    agent.start()
    until(lambda: agent.ready(1), what=agent.log())
    assert [infer(agent) for _ in range(4)] == [200, 200, 200, 429]
    assert agent.call("POST", INFER, {**BODY, "parameters": {"trace": True}})[0] in (403, 429)


@pytest.mark.parametrize(
    ("name", "settings", "code", "message"),
    [
        ("token", 'http_token_file = "none"', 2, "that it names cannot be read: No such file"),
        ("socket", 'http_socket = "missing/p.sock"', 1, "cannot listen on"),
        ("host", 'http_host = "203.0.113.9"', 1, "cannot listen on 203.0.113.9"),
    ],
)
def test_a_setting_that_cannot_be_had_ends_the_start_in_one_line(
    enrolled, name, settings, code, message
):
    agent = enrolled(f"wrong-{name}", settings + "\n")
    done = agent.command("run")
    assert done.returncode == code
    assert message in done.stderr
    assert done.stderr.count("skerry-agent:") == 1
    assert "Traceback" not in done.stderr


def test_a_grpc_port_that_is_taken_ends_the_start_in_one_line(enrolled):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        agent = enrolled("wrong-grpc", f"grpc_port = {taken.getsockname()[1]}\n")
        done = agent.command("run")
    assert done.returncode == 1
    assert "for gRPC" in done.stderr
    assert done.stderr.count("skerry-agent:") == 1
    assert "Traceback" not in done.stderr
