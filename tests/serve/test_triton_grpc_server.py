"""What the gRPC server reads, bounds and refuses beyond what Triton's client sends."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

from edge_agent.serve import Buckets, CannotListen, Limits, RateLimit, Server, grpc_messages
from edge_agent.serve.errors import BadRequest
from edge_agent.serve.grpc import GrpcServer, _address
from tests.serve.triton_bundles import DATATYPES, values
from tests.serve.triton_grpc import (
    Serving,
    busy,
    echo_input,
    raw_infer,
    raw_refusal,
    refusal,
    serving_grpc,
    typed_request,
)

TYPED = [name for name in DATATYPES if name not in ("FP16", "BF16")]


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving_grpc(tmp_path_factory.mktemp("bundles")) as serving:
        yield serving


# ── the table of messages ─────────────────────────────────────────────────────────────────────────


def test_every_field_is_numbered_and_typed_as_the_protocol_has_it() -> None:
    theirs = {}
    pending = [
        *service_pb2.DESCRIPTOR.message_types_by_name.values(),
        *model_config_pb2.DESCRIPTOR.message_types_by_name.values(),
    ]
    while pending:
        message = pending.pop()
        theirs[message.name] = message
        pending += message.nested_types
    renamed = {"SpecificVersions": "Specific"}
    compared = 0
    for name, ours in grpc_messages.message_types().items():
        fields = theirs[renamed.get(name, name)].fields_by_name
        for field in ours.DESCRIPTOR.fields:
            other = fields[field.name]
            assert (field.number, field.type, field.is_repeated) == (
                other.number,
                other.type,
                other.is_repeated,
            ), f"{name}.{field.name}"
            compared += 1
    assert compared > 100
    data_type = model_config_pb2.DataType
    for number, name in enumerate(grpc_messages._ENUMS["DataType"]):
        assert data_type.Value(name) == number


def test_the_server_s_messages_leave_the_process_wide_pool_alone() -> None:
    code = (
        "from edge_agent.serve import grpc_messages\n"
        "grpc_messages.message_types()\n"
        "from tritonclient.grpc import service_pb2\n"
        "from edge_agent.serve.grpc_messages import message_types\n"
        "assert message_types()['ModelInferRequest'] is not service_pb2.ModelInferRequest\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


# ── typed contents and raw bytes ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("datatype", TYPED)
def test_every_datatype_but_half_floats_travels_in_typed_contents(
    datatype: str, serving: Serving
) -> None:
    array = values(datatype)
    response = raw_infer(serving, typed_request(datatype, array))
    answer = triton.InferResult(response).as_numpy("y")
    assert answer.dtype == array.dtype
    np.testing.assert_array_equal(answer, array)
    assert not response.outputs[0].HasField("contents")


def test_many_typed_values_do_not_hold_up_other_calls(serving: Serving) -> None:
    """A million numbers take a good part of a second to convert; the event loop goes on."""
    request = typed_request("INT32", np.zeros((300_000, 3), np.int32))
    ended = threading.Event()

    async def longest_turn_s() -> float:
        longest_s, last = 0.0, time.perf_counter()
        while not ended.is_set():
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest_s, last = max(longest_s, now - last), now
        return longest_s

    watching = asyncio.run_coroutine_threadsafe(longest_turn_s(), serving.loop.loop)
    start = time.perf_counter()
    try:
        # so many items are refused, once they are read
        assert "items; a request has" in raw_refusal(serving, request)[1]
    finally:
        took_s = time.perf_counter() - start
        ended.set()
    assert watching.result(timeout=10) < took_s / 2


def _edited(edit: Callable[[Any], object]) -> Any:
    request = typed_request("INT8", np.array([[1, 2, 3]]))
    edit(request)
    return request


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda r: r.raw_input_contents.extend([b"abc", b""]), "2 raw_input_contents for 1 inputs"),
        (lambda r: r.raw_input_contents.append(b"abc"), "contents beside raw_input_contents"),
        (lambda r: r.inputs[0].contents.int_contents.append(4), "4 values do not make the shape"),
        (lambda r: r.inputs[0].contents.int64_contents.append(4), "INT8 stands in int_contents"),
        (lambda r: r.inputs[0].contents.int_contents.__setitem__(0, 300), "300"),
        (lambda r: setattr(r.inputs[0], "datatype", "FP16"), "input 'x' is float16, expected INT8"),
        # seen before its contents, which do not fit either
        (lambda r: r.inputs[0].shape.__setitem__(1, 4), "has shape [1, 4]"),
        (lambda r: setattr(r.inputs[0], "datatype", "INT4"), "'INT4'"),
        (lambda r: r.inputs[0].shape.__setitem__(0, -1), "is not valid"),
        (lambda r: r.inputs[0].shape.extend([1] * 30), "is not valid"),
        (lambda r: r.inputs[0].shape.extend([2**62] * 3), "do not make the shape"),
    ],
)
def test_contents_that_do_not_fit_are_refused(
    edit: Callable[[Any], object], text: str, serving: Serving
) -> None:
    status, message = raw_refusal(serving, _edited(edit))
    assert (status, text in message) == ("INVALID_ARGUMENT", True), message


def test_half_floats_come_as_raw_bytes_only() -> None:
    request = _edited(lambda r: setattr(r.inputs[0], "datatype", "FP16"))
    with pytest.raises(BadRequest, match="raw_input_contents only"):
        grpc_messages.decode(request, ())


@pytest.mark.parametrize("size", [0, 11, 13])
def test_raw_bytes_of_another_length_are_refused(size: int, serving: Serving) -> None:
    request = service_pb2.ModelInferRequest(model_name="strict", raw_input_contents=[bytes(size)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    assert raw_refusal(serving, request) == (
        "INVALID_ARGUMENT", f"input 'x': {size} bytes, FP32 [1, 3] takes 12",
    )  # fmt: skip


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\xff\x01", b"\x0a\x02\xff\xfe"])
def test_a_message_that_is_none_is_refused(data: bytes, serving: Serving) -> None:
    status, text = raw_refusal(serving, data)
    assert (status, "is not valid" in text) == ("INVALID_ARGUMENT", True), text


def test_an_error_of_any_letters_fits_the_header_it_travels_in(serving: Serving) -> None:
    request = typed_request("INT8", np.array([[1, 2, 3]]))
    request.inputs[0].name = "\U0001f600" * 900
    request.inputs.append(request.inputs[0])  # given twice, which names it
    for _ in range(20):  # between 8 and 16 KiB a client refuses it by chance
        status, text = raw_refusal(serving, request)
        assert (status, "\U0001f600" * 50 in text) == ("INVALID_ARGUMENT", True), status


# ── bounds, and who may ask ───────────────────────────────────────────────────────────────────────


def test_a_message_beyond_the_bound_is_refused_inflated_or_not(
    serving: Serving,
) -> None:
    with serving.another(max_message_bytes=10_000) as client:
        for algorithm in (None, "gzip"):
            status, text = refusal(
                lambda algorithm=algorithm: client.infer(
                    "echo-fp32", echo_input(0.0, rows=1000), compression_algorithm=algorithm
                )
            )
            assert (status, "larger than max" in text) == ("RESOURCE_EXHAUSTED", True), text
        assert client.infer("echo-fp32", echo_input()).as_numpy("y") is not None


def test_requests_beyond_what_may_be_in_the_works_are_refused(
    serving: Serving,
) -> None:
    with serving.another(limits=Limits(max_inflight_bytes=10_000)) as client:
        assert refusal(lambda: client.infer("echo-fp32", echo_input(rows=1000))) == (
            "UNAVAILABLE", "too much is in the works for other requests",
        )  # fmt: skip
        assert client.infer("echo-fp32", echo_input()).as_numpy("y") is not None


def test_a_token_is_needed_for_all_but_health(
    serving: Serving,
) -> None:
    with serving.another(token="s3cret") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        for headers in (None, {"authorization": "Bearer wrong"}, {"authorization": "s3cret"}):
            for ask in (
                lambda headers=headers: client.infer("strict", echo_input(), headers=headers),
                lambda headers=headers: client.get_model_metadata("strict", headers=headers),
                lambda headers=headers: client.load_model("strict", headers=headers),
            ):
                status, text = refusal(ask)
                assert status == "UNAUTHENTICATED"
                assert "Bearer" in text and "s3cret" not in text
        right = {"authorization": "Bearer s3cret"}
        assert client.infer("strict", echo_input(), headers=right).as_numpy("y") is not None


def test_a_stream_needs_the_token_too(
    serving: Serving,
) -> None:
    with serving.another(token="s3cret") as client:
        done: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: done.put(error))
        with contextlib.suppress(InferenceServerException):  # it may know already
            client.async_stream_infer("strict", echo_input())
        assert done.get(timeout=10).status() == "StatusCode.UNAUTHENTICATED"
        client.stop_stream()


def test_a_client_that_asks_too_often_is_told_to_wait(
    serving: Serving,
) -> None:
    with serving.another(buckets=Buckets(RateLimit(per_second=0.01, burst=2))) as client:
        for _ in range(2):
            client.infer("strict", echo_input())
        status, text = refusal(lambda: client.infer("strict", echo_input()))
        assert (status, "try again later" in text) == ("RESOURCE_EXHAUSTED", True)


def silent_calls(
    address: str, count: int, method: str = "ModelInfer"
) -> tuple[Callable[[], None], list[Any]]:
    """Calls that are begun and bring no message, 64 on a connection, and what ends them."""
    ended = threading.Event()

    def never() -> Iterator[bytes]:
        ended.wait()
        yield from ()

    channels, calls = [], []
    for start in range(0, count, 64):
        # else channels of one process share a connection
        channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        channels.append(channel)
        ask = channel.stream_unary(f"/{grpc_messages.SERVICE}/{method}")
        calls += [ask.future(never()) for _ in range(start, min(start + 64, count))]

    def close() -> None:
        ended.set()
        for channel in channels:
            channel.close()

    return close, calls


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


@pytest.mark.parametrize("method", ["ModelInfer", "ServerLive", "ModelMetadata"])
def test_silent_calls_without_the_token_keep_nobody_out(method: str, serving: Serving) -> None:
    server = GrpcServer(serving.plane, token="s3cret")
    serving.loop.call(server.start())
    address = f"127.0.0.1:{server.port}"
    close, calls = silent_calls(address, 320, method)
    try:
        until(lambda: all(call.done() for call in calls))
        codes = {call.code() for call in calls}
        wanted = grpc.StatusCode.OK if method == "ServerLive" else grpc.StatusCode.UNAUTHENTICATED
        assert codes == {wanted}
        with triton.InferenceServerClient(address) as client:
            right = {"authorization": "Bearer s3cret"}
            assert client.is_server_ready(client_timeout=5)
            assert client.infer("strict", echo_input(), headers=right, client_timeout=5)
    finally:
        close()
        serving.loop.call(server.stop())


def test_silent_calls_are_given_up_and_health_is_answered_meanwhile(serving: Serving) -> None:
    server = GrpcServer(serving.plane, limits=Limits(message_s=2.0))
    serving.loop.call(server.start())
    address = f"127.0.0.1:{server.port}"
    close, calls = silent_calls(address, 256)
    try:
        until(lambda: server._calls == 256)
        with triton.InferenceServerClient(address) as client:
            assert client.is_server_ready(client_timeout=5)
            assert refusal(lambda: client.infer("strict", echo_input()))[0] == "UNAVAILABLE"
            until(lambda: all(call.done() for call in calls))
            assert {call.code() for call in calls} == {grpc.StatusCode.DEADLINE_EXCEEDED}
            assert calls[0].details() == "the request did not arrive in time"
            assert client.infer("strict", echo_input(), client_timeout=5)
        assert server._calls == 0
    finally:
        close()
        serving.loop.call(server.stop())


def test_one_connection_cannot_take_all_calls(serving: Serving) -> None:
    server = GrpcServer(serving.plane, limits=Limits(message_s=30.0))
    serving.loop.call(server.start())
    ended = threading.Event()

    def never() -> Iterator[bytes]:
        ended.wait()
        yield from ()

    try:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            ask = channel.stream_unary(f"/{grpc_messages.SERVICE}/ModelInfer")
            calls = [ask.future(never()) for _ in range(100)]
            until(lambda: server._calls == 64)
            time.sleep(0.2)
            assert server._calls == 64
            ended.set()
            until(lambda: all(call.done() for call in calls))
            assert {call.details() for call in calls} == {"the call brought no request"}
    finally:
        serving.loop.call(server.stop())


def test_a_connection_with_many_calls_has_all_of_them_answered(serving: Serving) -> None:
    done: queue.Queue[Any] = queue.Queue()
    for _ in range(1000):
        serving.client.async_infer(
            "echo-fp32", echo_input(), lambda result, error: done.put(error and str(error))
        )
    assert {done.get(timeout=10) for _ in range(1000)} == {None}


def test_a_stream_that_brings_nothing_is_ended(serving: Serving) -> None:
    with serving.another(stream_idle_s=0.3) as client:
        done: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: done.put(error or result))
        client.async_stream_infer("strict", echo_input())
        assert done.get(timeout=10).as_numpy("y") is not None
        assert done.get(timeout=10).status() == "StatusCode.DEADLINE_EXCEEDED"
        client.stop_stream()


def test_streams_leave_calls_for_others(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.serve.grpc.MAX_STREAMS", 1)
    server = GrpcServer(serving.plane)
    serving.loop.call(server.start())
    address = f"127.0.0.1:{server.port}"
    done: queue.Queue[Any] = queue.Queue()
    try:
        with (
            triton.InferenceServerClient(address) as client,
            triton.InferenceServerClient(address) as other,
        ):
            client.start_stream(lambda result, error: done.put(error or result))
            client.async_stream_infer("strict", echo_input())
            assert done.get(timeout=10).as_numpy("y") is not None
            other.start_stream(lambda result, error: done.put(error or result))
            assert done.get(timeout=10).status() == "StatusCode.UNAVAILABLE"
            assert client.infer("strict", echo_input()).as_numpy("y") is not None
    finally:
        serving.loop.call(server.stop())


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:51234", "127.0.0.1"),
        ("ipv6:%5B::1%5D:51234", "::1"),
        ("ipv6:[fe80::1%25eth0]:5", "fe80::1%eth0"),
        ("unix:", "unix:"),
    ],
)
def test_a_client_is_named_as_http_names_it(peer: str, address: str) -> None:
    assert _address(peer) == address


def test_a_client_s_rate_and_the_bytes_in_the_works_are_those_of_both_transports(
    serving: Serving,
) -> None:
    buckets, limits = Buckets(RateLimit(per_second=0.01, burst=2)), Limits()
    by_http = Server(serving.plane, buckets=buckets, limits=limits)
    serving.loop.call(by_http.start())
    try:
        with (
            serving.another(buckets=buckets, limits=limits) as client,
            tritonclient.http.InferenceServerClient(f"127.0.0.1:{by_http.port}") as other,
        ):
            item = tritonclient.http.InferInput("x", [1, 3], "FP32")
            item.set_data_from_numpy(np.ones((1, 3), np.float32))
            other.infer("strict", [item])
            client.infer("strict", echo_input())
            assert refusal(lambda: client.infer("strict", echo_input()))[0] == "RESOURCE_EXHAUSTED"
            assert refusal(lambda: other.infer("strict", [item]))[0] == "429"
            assert limits.inflight_bytes == 0
            limits.inflight_bytes = limits.max_inflight_bytes  # of the other transport
            assert refusal(lambda: client.infer("strict", echo_input()))[0] == "UNAVAILABLE"
    finally:
        serving.loop.call(by_http.stop())


def test_a_trace_is_given_in_debug_mode_as_by_http(serving: Serving) -> None:
    with serving.another(debug=True) as client:
        answer = client.infer("strict", echo_input(), parameters={"trace": True})
        names = [output.name for output in answer.get_response().outputs]
        assert names == ["y", "step:1:model:y"]
        np.testing.assert_array_equal(answer.as_numpy(names[1]), np.ones((1, 3), np.float32))
        assert client.infer("strict", echo_input()).as_numpy(names[1]) is None


# ── starting and stopping ─────────────────────────────────────────────────────────────────────────


def test_a_taken_port_is_one_clear_error(serving: Serving) -> None:
    server = GrpcServer(serving.plane, port=serving.server.port)
    with pytest.raises(CannotListen, match=str(serving.server.port)):
        serving.loop.call(server.start())


def test_stop_ends_what_runs_and_takes_no_more(serving: Serving) -> None:
    server = GrpcServer(serving.plane)
    serving.loop.call(server.start())
    done: queue.Queue[Any] = queue.Queue()
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        client.async_infer("slow", echo_input(0.3), lambda result, error: done.put(error or result))
        deadline = time.monotonic() + 5
        while (lane := serving.plane.models["slow"].lane) is None or not lane.busy:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        serving.loop.call(server.stop(grace_s=5))
        assert not isinstance(done.get(timeout=10), Exception)
        assert refusal(lambda: client.infer("strict", echo_input()))[0] == "UNAVAILABLE"


def test_a_client_that_goes_away_leaves_nothing_behind(serving: Serving) -> None:
    done = busy(serving, 0.3)
    with triton.InferenceServerClient(serving.address) as client:
        waiting = client.async_infer("slow", echo_input(5.0), lambda result, error: None)
        lane = serving.plane.models["slow"].lane
        assert lane is not None
        deadline = time.monotonic() + 5
        while lane.waiting == 0:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        waiting.cancel()
    assert not isinstance(done.get(timeout=10), Exception)
    start = time.monotonic()
    serving.client.infer("slow", echo_input(0.0))
    assert time.monotonic() - start < 3, "the forsaken request ran"


def test_without_the_extra_there_is_one_clear_error() -> None:
    code = (
        "import sys\n"
        "sys.modules['grpc'] = None\n"
        "from edge_agent.serve import DataPlane\n"
        "from edge_agent.serve.grpc import GrpcServer, GrpcUnavailable\n"
        "try:\n"
        "    GrpcServer(DataPlane())\n"
        "except GrpcUnavailable as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "skerry-agent[grpc]" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_serving_does_not_import_grpc() -> None:
    code = (
        "import sys, edge_agent.serve.grpc\n"
        "print([name for name in ('grpc', 'google.protobuf') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_a_waiting_server_does_nothing(serving: Serving) -> None:
    """The poller of gRPC wakes nobody while no call comes."""
    before = time.process_time()
    asyncio.run(asyncio.sleep(0.5))
    assert time.process_time() - before < 0.1
