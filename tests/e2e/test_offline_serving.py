"""Offline: a device goes on serving its committed version, whatever is wrong with line and clock.

One real agent installs a version over a real broker.  Then it is restarted with something missing
or wrong, and asked for answers that are compared with figures computed here.  Requests go over its
Unix socket: a network namespace without any address still has files.
"""

from __future__ import annotations

import datetime as dt
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from cryptography import x509

from edge_agent.device.identity import certificate_request
from edge_agent.disk import write_whole
from fleet.enrolment.ca import CertificateAuthority
from tests.agent.conftest import MODEL, Plane, Process, plane, until  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

DEVICE = "offline"
QUESTIONS = np.array([[0, 5, 1, 0], [9, 0, 0, 0], [0.5, 0.25, 0, 0.75]], np.float32)


@pytest.fixture(scope="module")
def install(
    plane: Plane,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Process]:
    """Makes agents that stopped after version 1 was committed."""
    root = tmp_path_factory.mktemp("devices")
    first = plane.release(1, root)

    def make(name: str) -> Process:
        directory = root / name
        directory.mkdir()
        (directory / "agent.toml").write_text(
            "http_port = 0\nreconnect_first_s = 0.1\nreconnect_max_s = 0.5\n"
        )
        agent = Process(directory)
        claim = plane.claim(root / f"{name}.json")
        done = agent.command("enrol", "--claim", str(claim), "--name", name)
        assert done.returncode == 0, done.stderr
        plane.assign(name, first)
        agent.start()
        try:
            until(lambda: phase(agent) == "healthy", what="version 1 committed")
        finally:
            agent.stop()
        return agent

    return make


@pytest.fixture(scope="module")
def agent(install: Callable[[str], Process]) -> Process:
    return install(DEVICE)


def restart(agent: Process, *prefix: str, **environment: str) -> None:
    """Start it once more, through `prefix` and with these variables set."""
    agent.prefix, agent.environment = prefix, environment
    (agent.directory / "agent.log").unlink(missing_ok=True)
    agent.start()


@pytest.fixture(autouse=True)
def stopped(agent: Process) -> Iterator[None]:
    """However a test ends, the agent stops in order."""
    yield
    if agent.process is not None and agent.process.poll() is None:
        assert agent.stop() == 0, agent.log()


@pytest.fixture
def no_broker(plane: Plane) -> Iterator[None]:  # noqa: F811
    plane.broker.stop()
    yield
    plane.broker.start()


def ask(agent: Process, method: str, path: str, body: object = None) -> tuple[int, Any]:
    return agent.call(method, path, body, unix=agent.about()["unix_socket"])


def phase(agent: Process) -> str:
    _, status = ask(agent, "GET", "/status")
    return str(status["models"].get(MODEL, {}).get("phase"))


def answers_right(agent: Process, version: int = 1) -> None:
    """The committed version is ready and answers as computed here."""
    assert ask(agent, "GET", "/v2/health/ready")[0] == 200
    body = {
        "inputs": [
            {"name": "x", "shape": [3, 4], "datatype": "FP32", "data": QUESTIONS.ravel().tolist()}
        ]
    }
    code, answer = ask(agent, "POST", f"/v2/models/{MODEL}/infer", body)
    assert code == 200, answer
    assert answer["model_version"] == str(version)
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    scores = np.exp(QUESTIONS * (1 + version))
    scores /= scores.sum(axis=1, keepdims=True)
    assert outputs["label"] == [1, 0, 3]
    assert np.allclose(np.reshape(outputs["scores"], (3, 4)), scores, atol=1e-5)


def tried_in_vain(agent: Process) -> None:
    """The agent looked for its broker, got nowhere, and is none the worse for it."""
    until(lambda: agent.log().count("link.unreachable") >= 1, what=agent.log())
    _, status = ask(agent, "GET", "/status")
    assert status["connected"] is False
    assert status["models"][MODEL]["phase"] == "healthy"
    answers_right(agent)


def test_it_serves_without_a_broker(no_broker, agent):
    restart(agent)
    answers_right(agent)
    tried_in_vain(agent)


@pytest.mark.parametrize("loopback", [True, False], ids=["loopback-only", "no-device-at-all"])
def test_it_serves_without_any_network(agent, loopback):
    up = "ip link set lo up;" if loopback else ""
    try:
        subprocess.run(["unshare", "-n", "sh", "-c", up], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"").decode(errors="replace").strip()
        pytest.skip(
            "a network namespace of its own takes the right to make one (CAP_SYS_ADMIN), and "
            f"unshare and ip; without it no line is cut, so nothing is tested: {said or error}"
        )
    restart(agent, "unshare", "-n", "sh", "-c", f'{up} exec "$@"', "sh")
    answers_right(agent)
    tried_in_vain(agent)


def test_fault_27_it_serves_when_its_certificate_has_expired(plane, agent):  # noqa: F811
    path = agent.directory / "device.pem"
    good = path.read_bytes()
    long_ago = dt.datetime.now(dt.UTC) - dt.timedelta(days=365)
    authority = CertificateAuthority.open(
        plane.services.settings.directory / "pki",
        (plane.services.settings.directory / "passphrase").read_text().strip(),
        clock=lambda: long_ago,
    )
    expired = authority.issue_device(certificate_request(_key(agent)), DEVICE)
    not_after = x509.load_pem_x509_certificate(expired.pem.encode()).not_valid_after_utc
    assert not_after < dt.datetime.now(dt.UTC)
    write_whole(path, expired.pem.encode())
    try:
        restart(agent)
        answers_right(agent)
        tried_in_vain(agent)
    finally:
        write_whole(path, good)


def at_year(agent: Process, year: int) -> None:
    """Start the agent with a clock that begins with `year`; the monotonic one stays right."""
    if shutil.which("faketime") is None:
        pytest.fail("faketime is missing: run 'make clock'")
    # the command itself would stand between us and the agent: signals would stop there
    library = subprocess.run(
        ["faketime", "-f", "+0", "printenv", "LD_PRELOAD"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    restart(
        agent, LD_PRELOAD=library, FAKETIME=f"@{year}-01-01 00:00:10", TZ="UTC",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
    )  # fmt: skip
    until(lambda: f"{year}-01-01 " in agent.log(), what=f"the clock of {year}: {agent.log()}")


@pytest.mark.parametrize("year", [1970, 2099])
def test_it_serves_whatever_its_clock_says(agent, year):
    at_year(agent, year)
    answers_right(agent)
    tried_in_vain(agent)


def test_a_wrong_clock_leaves_nothing_behind(plane, install, tmp_path):  # noqa: F811
    agent = install("dreamer")
    try:
        for year in (2099, 1970):
            at_year(agent, year)
            assert agent.predict(f"in-{year}", [0, 0, 1, 0]) == 2
            tried_in_vain(agent)
            assert agent.stop() == 0, agent.log()
        restart(agent)
        until(lambda: ask(agent, "GET", "/status")[1]["connected"], what=agent.log())
        until(lambda: ask(agent, "GET", "/status")[1]["outbox"]["pending"] == 0, what=agent.log())
        plane.assign("dreamer", plane.release(2, tmp_path))
        until(lambda: agent.ready(2), what=agent.log())
        until(lambda: phase(agent) == "healthy", what=agent.log())
        answers_right(agent, 2)
    finally:
        agent.stop()


def _key(agent: Process) -> Any:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    return load_pem_private_key((agent.directory / "device.key").read_bytes(), None)
