"""The unmodified gRPC client of Triton against the agent's gRPC server."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

from edge_agent.serve import CannotListen, DataPlane, grpc_messages
from edge_agent.serve.access import RateLimit
from edge_agent.serve.grpc import GrpcServer
from tests.serve.triton_bundles import DATATYPES, Loop, echo_name, served_plane, values

TYPED = [name for name in DATATYPES if name not in ("FP16", "BF16")]


@dataclass
class Serving:
    plane: DataPlane
    loop: Loop
    server: GrpcServer
    client: triton.InferenceServerClient

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    plane = served_plane(tmp_path_factory.mktemp("bundles"))
    with Loop.running() as loop:
        server = GrpcServer(plane)
        loop.call(server.start())
        with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            yield Serving(plane, loop, server, client)
        loop.call(server.stop())
        plane.close()


@pytest.fixture
def another(serving: Serving) -> Iterator[Callable[..., triton.InferenceServerClient]]:
    """Starts a further server of the same models, with settings of its own, and its client."""
    opened: list[tuple[GrpcServer, triton.InferenceServerClient]] = []

    def start(**settings: Any) -> triton.InferenceServerClient:
        server = GrpcServer(serving.plane, **settings)
        serving.loop.call(server.start())
        client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
        opened.append((server, client))
        return client

    yield start
    for server, client in opened:
        client.close()
        serving.loop.call(server.stop())


def tensor(name: str, array: NDArray[Any], datatype: str) -> triton.InferInput:
    item = triton.InferInput(name, list(array.shape), datatype)
    item.set_data_from_numpy(array)
    return item


def echo_input(value: float = 1.0, rows: int = 1) -> list[triton.InferInput]:
    return [tensor("x", np.full((rows, 3), value, np.float32), "FP32")]


def pair_inputs(rows: int = 2) -> list[triton.InferInput]:
    numbers = np.arange(rows * 2).reshape(rows, 2)
    return [
        tensor("a", numbers.astype(np.float32) / 2, "FP32"),
        tensor("b", numbers.astype(np.int64), "INT64"),
    ]


def wanted(*names: str) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name) for name in names]


def refusal(call: Callable[[], object]) -> tuple[str, str]:
    """Status and text of the error that `call` ends with."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    text = caught.value.message()
    assert text and "\n" not in text and "Traceback" not in text
    return caught.value.status().removeprefix("StatusCode."), text


def raw_infer(serving: Serving, request: Any) -> Any:
    """What the client library never sends: a request as it stands."""
    with grpc.insecure_channel(serving.address) as channel:
        call = channel.unary_unary(
            f"/{grpc_messages.SERVICE}/ModelInfer",
            request_serializer=lambda message: (
                message if isinstance(message, bytes) else message.SerializeToString()
            ),
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        return call(request, timeout=10)


def raw_refusal(serving: Serving, request: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        raw_infer(serving, request)
    return caught.value.code().name, caught.value.details()


def typed_request(datatype: str, array: NDArray[Any]) -> Any:
    """A request whose values stand in the typed contents."""
    request = service_pb2.ModelInferRequest(model_name=echo_name(datatype))
    item = request.inputs.add(name="x", datatype=datatype, shape=array.shape)
    fields = {
        "BOOL": "bool_contents", "INT64": "int64_contents", "UINT64": "uint64_contents",
        "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
    }  # fmt: skip
    field = fields.get(datatype, "uint_contents" if datatype[0] == "U" else "int_contents")
    getattr(item.contents, field).extend(array.ravel().tolist())
    return request


# ── the table of messages ────────────────────────────────────────────────────────────────────────


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


# ── health and descriptions ──────────────────────────────────────────────────────────────────────


def test_health(serving: Serving) -> None:
    client = serving.client
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("pair")
    assert client.is_model_ready("pair", "7")
    assert not client.is_model_ready("pair", "8")
    assert not client.is_model_ready("nothing")


def test_a_server_without_models_is_live_and_not_ready(serving: Serving) -> None:
    server = GrpcServer(DataPlane())
    serving.loop.call(server.start())
    try:
        with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            assert client.is_server_live()
            assert not client.is_server_ready()
    finally:
        serving.loop.call(server.stop())


def test_metadata(serving: Serving) -> None:
    assert serving.client.get_server_metadata(as_json=True)["name"] == "skerry-agent"
    metadata = serving.client.get_model_metadata("pair", "7", as_json=True)
    assert metadata["versions"] == ["7"]
    assert metadata["inputs"][1] == {"name": "b", "datatype": "INT64", "shape": ["-1", "2"]}
    assert [output["name"] for output in metadata["outputs"]] == ["total", "product", "first"]


def test_configuration(serving: Serving) -> None:
    config = serving.client.get_model_config("pair", as_json=True)["config"]
    assert config["name"] == "pair"
    assert [item["data_type"] for item in config["input"]] == ["TYPE_FP32", "TYPE_INT64"]
    assert [item["name"] for item in config["output"]] == ["total", "product", "first"]


def test_statistics_count_what_was_answered(serving: Serving) -> None:
    def count() -> int:
        stats = serving.client.get_inference_statistics("strict", as_json=True)["model_stats"]
        assert [stats[0]["name"], stats[0]["version"]] == ["strict", "7"]
        return int(stats[0]["inference_stats"]["success"].get("count", 0))

    before = count()
    for _ in range(3):
        serving.client.infer("strict", echo_input())
    assert count() == before + 3
    everything = serving.client.get_inference_statistics(as_json=True)["model_stats"]
    assert {each["name"] for each in everything} == set(serving.plane.models)


def test_the_repository_is_listed_and_not_changed(serving: Serving) -> None:
    index = serving.client.get_model_repository_index(as_json=True)["models"]
    assert {each["name"] for each in index} == set(serving.plane.models)
    assert {(each["version"], each["state"]) for each in index} == {("7", "READY")}
    for call in (serving.client.load_model, serving.client.unload_model):
        status, text = refusal(lambda call=call: call("pair"))
        assert status == "UNIMPLEMENTED"
        assert "decided by signed updates" in text


@pytest.mark.parametrize("what", ["get_model_metadata", "get_model_config"])
def test_nothing_is_described_that_is_not_served(what: str, serving: Serving) -> None:
    ask = getattr(serving.client, what)
    assert refusal(lambda: ask("nothing")) == ("NOT_FOUND", "no model 'nothing' is served here")
    assert refusal(lambda: ask("pair", "8"))[0] == "NOT_FOUND"


# ── inference ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_travels_as_raw_bytes(datatype: str, serving: Serving) -> None:
    array = values(datatype)
    result = serving.client.infer(echo_name(datatype), [tensor("x", array, datatype)])
    answer = result.as_numpy("y")
    assert answer.dtype == array.dtype
    np.testing.assert_array_equal(answer, array)
    assert result.get_response().outputs[0].datatype == datatype


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
        response = raw_infer(serving, request)
    finally:
        took_s = time.perf_counter() - start
        ended.set()
    assert response.outputs[0].shape == [300_000, 3]
    assert watching.result(timeout=10) < took_s / 2


def test_several_inputs_and_outputs(serving: Serving) -> None:
    result = serving.client.infer("pair", pair_inputs())
    assert [output.name for output in result.get_response().outputs] == [
        "total", "product", "first",
    ]  # fmt: skip
    np.testing.assert_array_equal(result.as_numpy("total"), [[0, 1.5], [3, 4.5]])
    np.testing.assert_array_equal(result.as_numpy("product"), [[0, 0.5], [2, 4.5]])
    np.testing.assert_array_equal(result.as_numpy("first"), [0, 2])


def test_only_the_wanted_outputs_are_sent_in_the_wanted_order(serving: Serving) -> None:
    result = serving.client.infer("pair", pair_inputs(), outputs=wanted("first", "total"))
    assert [output.name for output in result.get_response().outputs] == ["first", "total"]
    assert result.as_numpy("product") is None
    np.testing.assert_array_equal(result.as_numpy("first"), [0, 2])


def test_names_versions_and_ids_are_echoed(serving: Serving) -> None:
    response = serving.client.infer(
        "pair", pair_inputs(), model_version="7", request_id="mine"
    ).get_response()
    assert (response.model_name, response.model_version, response.id) == ("pair", "7", "mine")
    unnamed = {serving.client.infer("pair", pair_inputs()).get_response().id for _ in range(3)}
    assert len(unnamed) == 3


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(algorithm: str, serving: Serving) -> None:
    result = serving.client.infer(
        "echo-fp32", echo_input(2.0, rows=500), compression_algorithm=algorithm
    )
    np.testing.assert_array_equal(result.as_numpy("y"), np.full((500, 3), 2.0))


def test_async_infer(serving: Serving) -> None:
    done: queue.Queue[tuple[Any, Any]] = queue.Queue()
    for rows in range(1, 9):
        serving.client.async_infer(
            "echo-fp32",
            echo_input(float(rows), rows=rows),
            lambda result, error: done.put((result, error)),
        )
    answers = [done.get(timeout=10) for _ in range(8)]
    assert all(error is None for _, error in answers)
    assert sorted(len(result.as_numpy("y")) for result, _ in answers) == list(range(1, 9))


def test_asyncio_client(serving: Serving) -> None:
    import tritonclient.grpc.aio as triton_aio

    async def ask() -> NDArray[Any]:
        async with triton_aio.InferenceServerClient(serving.address) as client:
            result = await client.infer("pair", pair_inputs())
            answer: NDArray[Any] = result.as_numpy("first")
            return answer

    # on the server's own loop: grpc.aio knows one at a time
    np.testing.assert_array_equal(serving.loop.call(ask()), [0, 2])


def test_a_stream_answers_in_order_and_goes_on_after_an_error(serving: Serving) -> None:
    done: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with triton.InferenceServerClient(serving.address) as client:
        client.start_stream(lambda result, error: done.put((result, error)))
        for name in ("strict", "nothing", "strict"):
            client.async_stream_infer(name, echo_input(3.0), request_id=name)
        answers = [done.get(timeout=10) for _ in range(3)]
        client.stop_stream()
    assert [error is None for _, error in answers] == [True, False, True]
    assert answers[1][1].message() == "no model 'nothing' is served here"
    np.testing.assert_array_equal(answers[2][0].as_numpy("y"), [[3, 3, 3]])


def test_two_clients_at_once_get_their_own_answers(serving: Serving) -> None:
    wrong: list[float] = []

    def work(value: float) -> None:
        with triton.InferenceServerClient(serving.address) as client:
            for _ in range(50):
                answer = client.infer("echo-fp32", echo_input(value)).as_numpy("y")
                wrong.extend(answer[answer != value])

    threads = [threading.Thread(target=work, args=(float(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ── time ─────────────────────────────────────────────────────────────────────────────────────────


def busy(serving: Serving, seconds: float) -> queue.Queue[Any]:
    """Keep the slow model at work; its answer comes through the queue."""
    done: queue.Queue[Any] = queue.Queue()
    serving.client.async_infer(
        "slow", echo_input(seconds), lambda result, error: done.put(error or result)
    )
    deadline = time.monotonic() + 5
    lane = None
    while lane is None or not lane.busy:
        assert time.monotonic() < deadline
        lane = serving.plane.models["slow"].lane
        time.sleep(0.01)
    return done


def test_a_request_whose_timeout_passes_in_the_queue_is_not_run(serving: Serving) -> None:
    done = busy(serving, 0.4)
    status, text = refusal(lambda: serving.client.infer("slow", echo_input(0.0), timeout=100_000))
    assert (status, text) == (
        "DEADLINE_EXCEEDED", "model 'slow' did not come to the request within its timeout",
    )  # fmt: skip
    assert not isinstance(done.get(timeout=10), Exception)


def test_the_call_s_own_deadline_counts_too(serving: Serving) -> None:
    done = busy(serving, 0.4)
    status, _ = refusal(lambda: serving.client.infer("slow", echo_input(0.0), client_timeout=0.1))
    assert status == "DEADLINE_EXCEEDED"
    assert not isinstance(done.get(timeout=10), Exception)


def test_a_request_that_cannot_be_answered_in_time_is_refused_at_once(serving: Serving) -> None:
    """The slow model's cost claims 1 ms."""
    with pytest.raises(grpc.RpcError) as caught:
        request = typed_request("FP32", np.zeros((1, 3)))
        request.model_name = "slow"
        request.parameters["timeout"].int64_param = 100
        raw_infer(serving, request)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "model 'slow' is overloaded"
    assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"


def test_time_enough_is_no_matter(serving: Serving) -> None:
    result = serving.client.infer("echo-fp32", echo_input(), timeout=5_000_000, client_timeout=5.0)
    np.testing.assert_array_equal(result.as_numpy("y"), [[1, 1, 1]])


@pytest.mark.parametrize("timeout", [-1, 2.5])
def test_a_timeout_that_is_no_time_is_refused(timeout: float, serving: Serving) -> None:
    request = typed_request("FP32", np.ones((1, 3)))
    parameter = request.parameters["timeout"]
    if isinstance(timeout, int):
        parameter.int64_param = timeout
    else:
        parameter.double_param = timeout
    assert raw_refusal(serving, request) == (
        "INVALID_ARGUMENT", "parameter 'timeout': must be a whole number of microseconds",
    )  # fmt: skip


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("model", "inputs", "more", "status", "text"),
    [
        ("nothing", echo_input(), {}, "NOT_FOUND", "no model 'nothing' is served here"),
        ("pair", pair_inputs(), {"model_version": "8"}, "NOT_FOUND", "served in version 7 only"),
        ("strict", pair_inputs()[:1], {}, "INVALID_ARGUMENT", "input 'x' is missing"),
        (
            "strict", [tensor("x", np.ones((1, 3)), "FP64")], {},
            "INVALID_ARGUMENT", "expected FP32",
        ),
        (
            "strict", [tensor("x", np.ones((1, 4), np.float32), "FP32")], {},
            "INVALID_ARGUMENT", "expected [-1, 3]",
        ),
        (
            "strict", [tensor("x", np.ones((0, 3), np.float32), "FP32")], {},
            "INVALID_ARGUMENT", "holds no items",
        ),
        ("pair", pair_inputs()[:1], {}, "INVALID_ARGUMENT", "input 'b' is missing"),
        ("strict", echo_input() * 2, {}, "INVALID_ARGUMENT", "given twice"),
        ("strict", echo_input(), {"outputs": wanted("y", "y")}, "INVALID_ARGUMENT", "twice"),
        ("strict", echo_input(), {"parameters": {"trace": True}}, "PERMISSION_DENIED", "trace"),
        ("strict", echo_input(), {"outputs": wanted("z")}, "INVALID_ARGUMENT", "'z'"),
        ("strict", echo_input(), {"request_id": "x" * 65}, "INVALID_ARGUMENT", "id: longer than"),
        ("strict", echo_input(1000.0), {}, "INVALID_ARGUMENT", "rejected: out_of_range"),
        (
            "strict", echo_input(), {"outputs": [triton.InferRequestedOutput("y", class_count=2)]},
            "INVALID_ARGUMENT", "classification extension is not supported",
        ),
    ],
)  # fmt: skip
def test_errors_have_the_status_and_text_of_their_cause(
    model: str,
    inputs: list[triton.InferInput],
    more: dict[str, Any],
    status: str,
    text: str,
    serving: Serving,
) -> None:
    actual, message = refusal(lambda: serving.client.infer(model, inputs, **more))
    assert (actual, text in message) == (status, True), message
    assert serving.client.infer("strict", echo_input()).as_numpy("y") is not None


def test_bf16_and_fp32_are_not_taken_for_each_other(serving: Serving) -> None:
    """Inside, both are float32."""
    for given, expected in (("BF16", "FP32"), ("FP32", "BF16")):
        array = values(given)
        ask = refusal(
            lambda given=given, expected=expected, array=array: serving.client.infer(
                echo_name(expected), [tensor("x", array, given)]
            )
        )
        assert ask == ("INVALID_ARGUMENT", f"input 'x' is {given}, expected {expected}")


def test_shared_memory_is_refused_by_name(serving: Serving) -> None:
    item = triton.InferInput("x", [1, 3], "FP32")
    item.set_shared_memory("region", 12)
    assert "shared memory" in refusal(lambda: serving.client.infer("strict", [item]))[1]
    output = triton.InferRequestedOutput("y")
    output.set_shared_memory("region", 12)
    ask = refusal(lambda: serving.client.infer("strict", echo_input(), outputs=[output]))
    assert "shared memory" in ask[1]


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
        (lambda r: setattr(r.inputs[0], "datatype", "FP16"), "raw_input_contents only"),
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


def test_a_message_beyond_the_bound_is_refused_inflated_or_not(
    another: Callable[..., triton.InferenceServerClient],
) -> None:
    client = another(max_message_bytes=10_000)
    for algorithm in (None, "gzip"):
        status, text = refusal(
            lambda algorithm=algorithm: client.infer(
                "echo-fp32", echo_input(0.0, rows=1000), compression_algorithm=algorithm
            )
        )
        assert (status, "larger than max" in text) == ("RESOURCE_EXHAUSTED", True), text
    assert client.infer("echo-fp32", echo_input()).as_numpy("y") is not None


def test_requests_beyond_what_may_be_in_the_works_are_refused(
    another: Callable[..., triton.InferenceServerClient],
) -> None:
    client = another(max_inflight_bytes=10_000)
    assert refusal(lambda: client.infer("echo-fp32", echo_input(rows=1000))) == (
        "UNAVAILABLE", "too much is in the works for other requests",
    )  # fmt: skip
    assert client.infer("echo-fp32", echo_input()).as_numpy("y") is not None


# ── who may ask ──────────────────────────────────────────────────────────────────────────────────


def test_a_token_is_needed_for_all_but_health(
    another: Callable[..., triton.InferenceServerClient],
) -> None:
    client = another(token="s3cret")
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
    another: Callable[..., triton.InferenceServerClient],
) -> None:
    client = another(token="s3cret")
    done: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: done.put(error))
    with contextlib.suppress(InferenceServerException):  # it may know already
        client.async_stream_infer("strict", echo_input())
    assert done.get(timeout=10).status() == "StatusCode.UNAUTHENTICATED"
    client.stop_stream()


def test_a_client_that_asks_too_often_is_told_to_wait(
    another: Callable[..., triton.InferenceServerClient],
) -> None:
    client = another(rate=RateLimit(per_second=0.01, burst=2))
    for _ in range(2):
        client.infer("strict", echo_input())
    status, text = refusal(lambda: client.infer("strict", echo_input()))
    assert (status, "try again later" in text) == ("RESOURCE_EXHAUSTED", True)


# ── starting and stopping ────────────────────────────────────────────────────────────────────────


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
