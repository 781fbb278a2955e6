"""The device's side: the bytes of the protocol, and devices that answer as they should not.

Devices that behave are real servers in `test_parity`; what none of those would say is said here by
a scripted HTTP server.
"""

from __future__ import annotations

import http.server
import json
import math
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud.parity import (
    Device,
    DeviceAddress,
    DeviceAnswer,
    DeviceUnreachable,
    OtherVersion,
    Tolerance,
    check,
)
from cloud.parity.device import TooLarge
from cloud.parity.protocol import HEAD_LENGTH, decode, encode, rounded
from edge_agent.pipeline import Pipeline, Tensors
from edge_agent.serve import oip
from edge_agent.wire.manifest import Datatype, Manifest, StepSpec, TensorSpec
from tests.runtime.networks import images, write_bundle


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_bundle(tmp_path / "bundle")


def spec(datatype: Datatype) -> TensorSpec:
    return TensorSpec(name="x", datatype=datatype, shape=(-1, 2))


# ── bytes ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("BOOL", np.array([[True, False]])),
        ("UINT64", np.array([[2**64 - 1, 0]], np.uint64)),
        ("INT8", np.array([[-128, 127]], np.int8)),
        ("FP16", np.array([[1.5, -65504]], np.float16)),
        ("FP32", np.array([[math.nan, math.inf]], np.float32)),
        ("FP64", np.array([[1e300, -0.0]], np.float64)),
        ("BYTES", np.array([[b"\x00\xff", b""]], object)),
        ("BF16", np.array([[1.0, -3.5]], np.float32)),
    ],
)
def test_every_datatype_reaches_the_device_as_it_is(
    datatype: Datatype, values: np.ndarray[Any, Any]
) -> None:
    body, length = encode({"x": values}, [spec(datatype)], trace=True)
    tensors, ask = oip.decode(body, length)
    assert ask.trace
    assert ask.binary
    assert tensors["x"].dtype == values.dtype
    np.testing.assert_array_equal(tensors["x"], values)


def answer(outputs: list[dict[str, Any]], tail: bytes = b"") -> tuple[bytes, int]:
    head = json.dumps({"model_name": "digits", "outputs": outputs}).encode()
    return head + tail, len(head)


def test_steps_are_told_apart_whatever_their_names_hold(manifest: Manifest) -> None:
    odd = manifest.model_copy(
        update={"pipeline": (StepSpec(name="a:b"), StepSpec(name="a"), StepSpec(name="model"))}
    )
    one = {"datatype": "INT64", "shape": [1], "data": [7]}
    trace = decode(
        *answer(
            [
                {"name": "label", **one}, {"name": "step:0:a:b:c:0", **one},
                {"name": "step:1:a:b:0", **one},
            ]
        ),
        odd,
    )  # fmt: skip
    assert trace.shows_steps
    assert [(name, list(made)) for name, made in trace.steps] == [
        ("a:b", ["c:0"]), ("a", ["b:0"]), ("model", []),
    ]  # fmt: skip


def test_an_answer_in_json_is_read_too(manifest: Manifest) -> None:
    outputs = [
        {"name": "f", "datatype": "FP32", "shape": [1, 2], "data": [1.5, None]},
        {"name": "t", "datatype": "BYTES", "shape": [2], "data": ["a", "ü"]},
    ]
    trace = decode(answer(outputs)[0], None, manifest)
    assert not trace.shows_steps
    np.testing.assert_array_equal(trace.outputs["f"], np.array([[1.5, math.nan]], np.float32))
    assert trace.outputs["t"].tolist() == [b"a", "ü".encode()]


def test_bf16_is_rounded_to_the_nearest_and_ties_to_even() -> None:
    exact = np.array([[1.0, 1 + 2**-8]], np.float32)  # the second lies between two of BF16
    up = np.array([[1 + 3 * 2**-8, math.nan]], np.float32)
    assert rounded({"x": exact}, [spec("BF16")])["x"].tolist() == [[1.0, 1.0]]
    there = rounded({"x": up}, [spec("BF16")])["x"]
    assert there[0, 0] == 1 + 4 * 2**-8
    assert np.isnan(there[0, 1])
    assert rounded({"x": exact}, [spec("FP32")])["x"] is exact


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"outputs": 3}',
        b'{"outputs": [{"name": "x"}]}',
        b'{"outputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1]}]}',
        b'{"outputs": [{"name": "x", "datatype": "FP7", "shape": [1], "data": [1]}]}',
        b'{"outputs": [{"name": "x", "datatype": "FP32", "shape": [1], '
        b'"parameters": {"binary_data_size": 4}}]}',
        b'{"outputs": [{"name": "step:9:model:x", "datatype": "FP32", "shape": [1], "data": [1]}]}',
        b'{"outputs": [{"name": "step:0:other:x", "datatype": "FP32", "shape": [1], "data": [1]}]}',
    ],
)
def test_what_is_no_answer_is_one_line(manifest: Manifest, body: bytes) -> None:
    with pytest.raises(DeviceAnswer) as caught:
        decode(body, None, manifest)
    assert "\n" not in str(caught.value)


def test_texts_that_are_cut_short_are_no_answer(manifest: Manifest) -> None:
    output = {
        "name": "t", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6},
    }  # fmt: skip
    with pytest.raises(DeviceAnswer):
        decode(*answer([output], b"\x09\x00\x00\x00ab"), manifest)


# ── devices that do not behave ───────────────────────────────────────────────────────────────────


@dataclass
class Script:
    """Replies in turn, the last one again and again; remembers what it was asked."""

    replies: list[tuple[int, dict[str, str], bytes]]
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)
    url: str = ""

    def next(self) -> tuple[int, dict[str, str], bytes]:
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


Scripted = Callable[..., Script]


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(*replies: tuple[int, dict[str, str], object]) -> Script:
        script = Script(
            [
                (status, headers, body if isinstance(body, bytes) else json.dumps(body).encode())
                for status, headers, body in replies
            ]
        )

        class Handler(http.server.BaseHTTPRequestHandler):
            def reply(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                script.asked.append((self.command, self.path, self.rfile.read(length)))
                status, headers, body = script.next()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = reply  # noqa: N815 (the names that http.server calls)

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        script.url = f"http://127.0.0.1:{server.server_port}"
        return script

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def device(script: Script, **options: Any) -> Device:
    return Device(DeviceAddress.of_url(script.url), **options)


def inputs(count: int = 1) -> Tensors:
    return {"image": images(count)}


def test_a_busy_device_is_asked_again_as_late_as_it_wishes(scripted: Scripted) -> None:
    script = scripted(
        (503, {"Retry-After": "1"}, {"error": "busy"}),
        (429, {"Retry-After": "3600"}, {"error": "too often"}),
        (200, {}, {"versions": ["4"]}),
    )
    waited: list[float] = []
    with device(script, sleep=waited.append) as there:
        assert there.version("digits") == 4
    assert waited == [1.0, 2.0]  # an hour is not waited for


def test_a_device_that_stays_busy_says_so(scripted: Scripted, manifest: Manifest) -> None:
    script = scripted((503, {}, {"error": "model 'digits' is overloaded"}))
    with (
        device(script, sleep=lambda _: None) as there,
        pytest.raises(DeviceAnswer, match="answers 503: model 'digits' is overloaded"),
    ):
        there.run(inputs(), manifest)
    assert len(script.asked) == 5


def test_a_refused_trace_is_not_asked_for_again(scripted: Scripted, manifest: Manifest) -> None:
    body, length = answer([{"name": "label", "datatype": "INT64", "shape": [1], "data": [7]}])
    script = scripted((403, {}, {"error": "not for you"}), (200, {HEAD_LENGTH: str(length)}, body))
    with device(script) as there:
        for _ in range(2):
            assert not there.run(inputs(), manifest).shows_steps
        assert there.why_no_steps == "not for you"
    assert [b'"trace"' in asked for _, _, asked in script.asked] == [True, False, False]


def test_a_device_that_passes_over_the_wish_for_steps_is_noticed(
    scripted: Scripted, manifest: Manifest
) -> None:
    body, _ = answer([{"name": "label", "datatype": "INT64", "shape": [1], "data": [7]}])
    with device(scripted((200, {}, body))) as there:
        assert not there.run(inputs(), manifest).shows_steps
        assert there.why_no_steps == "it answers without them"


def test_a_failure_that_names_its_step_is_placed_there(
    scripted: Scripted, manifest: Manifest
) -> None:
    script = scripted(
        (500, {}, {"error": "step 'scale' failed: ValueError: no"}),
        (500, {}, {"error": "internal error"}),
    )
    with device(script) as there:
        first, second = there.run(inputs(), manifest).stop, there.run(inputs(), manifest).stop
    assert first is not None
    assert second is not None
    assert (first.kind, first.index, second.index) == ("failed", 2, None)


def test_a_version_that_goes_away_meanwhile_ends_the_comparison(
    scripted: Scripted, manifest: Manifest
) -> None:
    script = scripted((404, {}, {"error": "model 'digits' is served in version 2 only"}))
    with device(script) as there, pytest.raises(OtherVersion, match="changed during"):
        there.run(inputs(), manifest)
    assert script.asked[0][1] == "/v2/models/digits/versions/1/infer"


def test_a_batch_that_is_too_large_for_the_device_leaves_the_verdict_open(
    scripted: Scripted, manifest: Manifest, tmp_path: Path
) -> None:
    script = scripted((413, {}, {"error": "the body is longer than 8 bytes"}))
    pipeline = Pipeline.open(tmp_path / "bundle", manifest)
    with device(script) as there:
        with pytest.raises(TooLarge):
            there.run(inputs(), manifest)
        found = check(
            manifest, pipeline, inputs(4), tolerance=Tolerance(1e-4), batches=(2,), device=there
        )
    pipeline.close()
    assert found.verdict == "INCONCLUSIVE"
    assert [(each.against, each.batch, each.verdict) for each in found.comparisons] == [
        ("device", 1, "INCONCLUSIVE"), ("batch of 1", 2, "PARITY"), ("device", 2, "INCONCLUSIVE"),
    ]  # fmt: skip
    assert found.comparisons[2].notes == (
        "the device takes no batch of 2: the body is longer than 8 bytes",
    )
    assert len(script.asked) == 3  # once by hand, once for each size


@pytest.mark.parametrize(
    "body", [b"<html>hello</html>", b"{}", b'{"versions": []}', b'{"versions": ["new"]}', b"[1]"]
)
def test_what_is_no_agent_is_told(scripted: Scripted, body: bytes) -> None:
    with (
        device(scripted((200, {}, body))) as there,
        pytest.raises(DeviceAnswer, match="is it a Skerry agent"),
    ):
        there.version("digits")


def test_a_status_that_tells_nothing_is_nothing(scripted: Scripted) -> None:
    for body in (b"[]", b"no json", b'{"models": []}'):
        with device(scripted((200, {}, body))) as there:
            assert there.installed("digits") == ("", "")


def test_a_device_that_takes_too_long_is_given_up(manifest: Manifest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = DeviceAddress.of_url(f"127.0.0.1:{silent.getsockname()[1]}")
        with (
            Device(address, timeout_s=0.1) as there,
            pytest.raises(DeviceUnreachable, match="takes too long"),
        ):
            there.run(inputs(), manifest)


# ── addresses and tokens that are none ───────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "url", ["http://user:hunter2@localhost:1", "user:hunter2@localhost:1", "http://hunter2@[::1"]
)
def test_an_address_with_a_password_is_refused_and_never_shown(url: str) -> None:
    with pytest.raises(DeviceUnreachable, match="SKERRY_DEVICE_TOKEN") as caught:
        DeviceAddress.of_url(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://" + "a" * 64 + ".example", "http://a..b", "http://" + "ü" * 70, "http://ex\0a"]
)
def test_a_host_that_no_name_server_knows_of_is_no_address(url: str) -> None:
    with pytest.raises(DeviceUnreachable, match="is not an address") as caught:
        DeviceAddress.of_url(url)
    assert "\n" not in str(caught.value)


def test_names_with_a_dot_at_the_end_and_numbers_are_addresses() -> None:
    for url in ("http://device.local.:8900", "[::1]:8900", "10.0.0.7", "http://ü.example"):
        assert str(DeviceAddress.of_url(url)).endswith(url)


@pytest.mark.parametrize("token", ["ż-secret", "a-secret\nb", "a secret", "secret\x7f"])
def test_a_token_that_no_request_can_carry_is_one_line_without_it(token: str) -> None:
    with pytest.raises(DeviceUnreachable, match="token") as caught:
        Device(DeviceAddress.of_url("localhost:1"), token=token)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_without_bounds_are_no_answer(scripted: Scripted, manifest: Manifest) -> None:
    with (
        device(scripted((200, {}, b'{"versions": [1e999]}'))) as there,
        pytest.raises(DeviceAnswer, match="is it a Skerry agent"),
    ):
        there.version("digits")
    shape = b'{"outputs": [{"name": "x", "datatype": "FP32", "shape": [1e999], "data": [1]}]}'
    with pytest.raises(DeviceAnswer, match="cannot be read"):
        decode(shape, None, manifest)
