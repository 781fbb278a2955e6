"""The unmodified gRPC client of Triton against the agent's gRPC server."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray

from edge_agent.serve import DataPlane
from edge_agent.serve.grpc import GrpcServer
from tests.serve.triton_bundles import DATATYPES, echo_name, values
from tests.serve.triton_grpc import (
    Serving,
    busy,
    echo_input,
    pair_inputs,
    raw_infer,
    raw_refusal,
    refusal,
    serving_grpc,
    tensor,
    typed_request,
    wanted,
)


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving_grpc(tmp_path_factory.mktemp("bundles")) as serving:
        yield serving


# ── health and descriptions ───────────────────────────────────────────────────────────────────────


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


# ── inference ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_travels_as_raw_bytes(datatype: str, serving: Serving) -> None:
    array = values(datatype)
    result = serving.client.infer(echo_name(datatype), [tensor("x", array, datatype)])
    answer = result.as_numpy("y")
    assert answer.dtype == array.dtype
    np.testing.assert_array_equal(answer, array)
    assert result.get_response().outputs[0].datatype == datatype


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


# ── time ──────────────────────────────────────────────────────────────────────────────────────────


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


# ── errors ────────────────────────────────────────────────────────────────────────────────────────


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
