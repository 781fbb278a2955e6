"""Every load sends the same request, as the Open Inference Protocol writes it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.loads.errors import ServerFailed
from bench.loads.networks import NETWORKS, TINY, Network
from bench.loads.requests import KINDS, HttpRequest, Kind, infer, read_answer


def body_of_script(text: str) -> bytes:
    """What Lua makes of the string in a wrk script."""
    found = re.search(r'^wrk\.body = "(.*)"$', text, re.MULTILINE)
    assert found is not None
    unescaped = re.sub(r"\\(\d{3})", lambda each: chr(int(each[1])), found[1])
    return unescaped.encode("latin-1")


def decoded(request: HttpRequest) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """The JSON and the tensor of a request, as the protocol says."""
    length = request.headers.get("Inference-Header-Content-Length")
    head = json.loads(request.body if length is None else request.body[: int(length)])
    [tensor] = head["inputs"]
    assert (tensor["name"], tensor["datatype"]) == ("x", "FP32")
    if length is None:
        values = np.array(tensor["data"], np.float32)
    else:
        tail = request.body[int(length) :]
        assert tensor["parameters"]["binary_data_size"] == len(tail)
        values = np.frombuffer(tail, "<f4")
    return head, values.reshape(tensor["shape"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_each_request_carries_the_sample(network: Network, kind: Kind) -> None:
    head, values = decoded(infer(network, kind))
    np.testing.assert_array_equal(values, network.sample())
    assert head.get("parameters", {}).get("binary_data_output", False) is (kind == "binary")


def test_a_deadline_is_asked_for_in_microseconds() -> None:
    for kind in KINDS:
        head, _ = decoded(infer(TINY, kind, timeout_us=20_000))
        assert head["parameters"]["timeout"] == 20_000


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrk_script_sends_the_same_bytes_and_runs_no_lua_later(
    tmp_path: Path, kind: Kind
) -> None:
    request = infer(TINY, kind)
    text = request.lua(tmp_path / "request.lua").read_text(encoding="ascii")
    assert body_of_script(text) == request.body
    assert all(f'wrk.headers["{k}"] = "{v}"' in text for k, v in request.headers.items())
    assert "function" not in text


def test_every_byte_survives_a_wrk_script(tmp_path: Path) -> None:
    request = HttpRequest("/", {}, bytes(range(256)) * 2 + b"\n7\x007")
    assert body_of_script(request.lua(tmp_path / "s.lua").read_text()) == request.body


def test_a_binary_answer_names_its_version_and_logits() -> None:
    head = b'{"model_version":"2","outputs":[{"name":"logits","shape":[1,2],"datatype":"FP32"}]}'
    headers = {"inference-header-content-length": str(len(head))}
    values = np.array([1.5, -2], "<f4")
    version, logits = read_answer(headers, head + values.tobytes())
    assert version == "2"
    np.testing.assert_array_equal(logits, [[1.5, -2]])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"outputs": []}',
        b'{"outputs": [{"name": "logits", "shape": [3], "data": [1]}]}',
    ],
)
def test_an_answer_that_is_none_is_said_to_be_none(body: bytes) -> None:
    with pytest.raises(ServerFailed, match="an answer that is none"):
        read_answer({}, body)
