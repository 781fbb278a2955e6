"""The command: bad input is one line and exit code 2, never a traceback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading

import pytest


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_agent", *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "required"),
        (("run",), 2, "--dir"),
        (("fly", "--dir", "x"), 2, "invalid choice"),
        (("run", "--dir", "{dir}"), 2, "not enrolled"),
        (("run", "--dir", "{dir}/bad"), 2, "did you mean 'http_port'"),
        (("enrol", "--dir", "{dir}", "--claim", "{dir}/none.json"), 2, "cannot be read"),
        (("status", "--dir", "{dir}"), 1, "no agent runs here"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, arguments, code, message):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "agent.toml").write_text("http_prt = 1\n")
    done = command(*(argument.format(dir=tmp_path) for argument in arguments))
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_agent_imports_nothing_heavy():
    code = (
        "import sys, edge_agent.agent, edge_agent.__main__; "
        "print(*[m for m in ('torch', 'fastapi', 'sqlalchemy', 'yaml', 'onnx', 'cloud', 'fleet',"
        " 'optimizer') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 500 Oops\r\n\r\n{}", b"HTTP/1.1 200 OK\r\n\r\n{"]
)
def test_an_agent_that_gives_no_status_is_one_line(tmp_path, answer):
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "agent.sock"
    (tmp_path / "run" / "agent.json").write_text(json.dumps({"unix_socket": str(path)}))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def reply() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(4096)
                client.sendall(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        done = command("status", "--dir", str(tmp_path))
        thread.join()
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
