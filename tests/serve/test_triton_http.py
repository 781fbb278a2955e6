"""The unmodified HTTP client of Triton against the agent's HTTP server."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from edge_agent.serve import DataPlane, Server
from edge_agent.serve.access import Buckets, RateLimit
from tests.serve.triton_bundles import DATATYPES, Loop, echo_name, served_plane, values

JSON_TYPES = [name for name in DATATYPES if name not in ("FP16", "BF16")]


@dataclass
class Serving:
    plane: DataPlane
    loop: Loop
    server: Server
    client: triton.InferenceServerClient

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    plane = served_plane(tmp_path_factory.mktemp("bundles"))
    with Loop.running() as loop:
        server = Server(plane)
        loop.call(server.start())
        with triton.InferenceServerClient(f"127.0.0.1:{server.port}", concurrency=4) as client:
            yield Serving(plane, loop, server, client)
        loop.call(server.stop())
        plane.close()


@pytest.fixture
def another(serving: Serving) -> Iterator[Callable[..., triton.InferenceServerClient]]:
    """Starts a further server of the same models, with settings of its own, and its client."""
    opened: list[tuple[Server, triton.InferenceServerClient]] = []

    def start(**settings: Any) -> triton.InferenceServerClient:
        server = Server(serving.plane, **settings)
        serving.loop.call(server.start())
        client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
        opened.append((server, client))
        return client

    yield start
    for server, client in opened:
        client.close()
        serving.loop.call(server.stop())


def tensor(
    name: str, array: NDArray[Any], datatype: str, *, binary: bool = True
) -> triton.InferInput:
    item = triton.InferInput(name, list(array.shape), datatype)
    item.set_data_from_numpy(array, binary_data=binary)
    return item


def echo_input(value: float = 1.0, rows: int = 1) -> list[triton.InferInput]:
    return [tensor("x", np.full((rows, 3), value, np.float32), "FP32")]


def pair_inputs(rows: int = 2, *, binary: bool = True) -> list[triton.InferInput]:
    numbers = np.arange(rows * 2).reshape(rows, 2)
    return [
        tensor("a", numbers.astype(np.float32) / 2, "FP32", binary=binary),
        tensor("b", numbers.astype(np.int64), "INT64", binary=binary),
    ]


def wanted(*names: str, binary: bool = True) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name, binary_data=binary) for name in names]


def refusal(call: Callable[[], object]) -> tuple[str, str]:
    """Status and text of the error that `call` ends with."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    text = caught.value.message()
    assert text and "\n" not in text and "Traceback" not in text
    return caught.value.status(), text


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
    server = Server(DataPlane())
    serving.loop.call(server.start())
    try:
        with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            assert client.is_server_live()
            assert not client.is_server_ready()
    finally:
        serving.loop.call(server.stop())


def test_metadata(serving: Serving) -> None:
    metadata = serving.client.get_server_metadata()
    assert metadata["name"] == "skerry-agent"
    assert "binary_tensor_data" in metadata["extensions"]
    model = serving.client.get_model_metadata("pair", "7")
    assert model["versions"] == ["7"]
    assert model["inputs"][1] == {"name": "b", "datatype": "INT64", "shape": [-1, 2]}
    assert [output["name"] for output in model["outputs"]] == ["total", "product", "first"]


def test_configuration(serving: Serving) -> None:
    config = serving.client.get_model_config("pair")
    assert config["name"] == "pair"
    assert [item["data_type"] for item in config["input"]] == ["TYPE_FP32", "TYPE_INT64"]
    assert config["output"][0] == {"name": "total", "data_type": "TYPE_FP32", "dims": [-1, 2]}


def test_statistics_count_what_was_answered(serving: Serving) -> None:
    def count() -> int:
        stats = serving.client.get_inference_statistics("strict", "7")["model_stats"]
        assert [stats[0]["name"], stats[0]["version"]] == ["strict", "7"]
        return int(stats[0]["inference_stats"]["success"]["count"])

    before = count()
    for _ in range(3):
        serving.client.infer("strict", echo_input())
    assert count() == before + 3
    everything = serving.client.get_inference_statistics()["model_stats"]
    assert {each["name"] for each in everything} == set(serving.plane.models)


def test_the_repository_is_listed_and_not_changed(serving: Serving) -> None:
    index = serving.client.get_model_repository_index()
    assert {each["name"] for each in index} == set(serving.plane.models)
    assert {(each["version"], each["state"]) for each in index} == {("7", "READY")}
    for call in (serving.client.load_model, serving.client.unload_model):
        status, text = refusal(lambda call=call: call("pair"))
        assert status == "501"
        assert "decided by signed updates" in text


@pytest.mark.parametrize(
    "what", ["get_model_metadata", "get_model_config", "get_inference_statistics"]
)
def test_nothing_is_described_that_is_not_served(what: str, serving: Serving) -> None:
    ask = getattr(serving.client, what)
    assert refusal(lambda: ask("nothing")) == ("404", "no model 'nothing' is served here")
    assert refusal(lambda: ask("pair", "8"))[0] == "404"


# ── inference ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_travels_as_binary(datatype: str, serving: Serving) -> None:
    array = values(datatype)
    result = serving.client.infer(echo_name(datatype), [tensor("x", array, datatype)])
    answer = result.as_numpy("y")
    assert answer.dtype == array.dtype
    np.testing.assert_array_equal(answer, array)
    assert result.get_output("y")["datatype"] == datatype


@pytest.mark.parametrize("output_binary", [True, False])
@pytest.mark.parametrize("input_binary", [True, False])
@pytest.mark.parametrize("datatype", JSON_TYPES)
def test_every_datatype_but_half_floats_travels_as_json(
    datatype: str, input_binary: bool, output_binary: bool, serving: Serving
) -> None:
    array = values(datatype)
    result = serving.client.infer(
        echo_name(datatype),
        [tensor("x", array, datatype, binary=input_binary)],
        outputs=wanted("y", binary=output_binary),
    )
    answer = result.as_numpy("y")
    assert ("data" in result.get_output("y")) != output_binary
    if datatype == "BYTES" and not output_binary:
        array = np.vectorize(bytes.decode, otypes=[np.object_])(array)  # JSON holds text
    np.testing.assert_array_equal(answer, array)
    assert answer.dtype == array.dtype


def test_what_json_cannot_say_comes_as_nan(serving: Serving) -> None:
    array = np.array([[np.nan, np.inf, 1.0]], np.float32)
    inputs = [tensor("x", array, "FP32")]
    binary = serving.client.infer("echo-fp32", inputs)
    np.testing.assert_array_equal(binary.as_numpy("y"), array)
    as_json = serving.client.infer("echo-fp32", inputs, outputs=wanted("y", binary=False))
    np.testing.assert_array_equal(as_json.as_numpy("y"), [[np.nan, np.nan, 1.0]])


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_in_json_are_refused(datatype: str, serving: Serving) -> None:
    status, text = refusal(
        lambda: serving.client.infer(
            echo_name(datatype),
            [tensor("x", values(datatype), datatype)],
            outputs=wanted("y", binary=False),
        )
    )
    assert (status, text) == ("400", f"output 'y': {datatype} travels as binary only")


@pytest.mark.parametrize("binary", [True, False])
def test_several_inputs_and_outputs(binary: bool, serving: Serving) -> None:
    result = serving.client.infer("pair", pair_inputs(binary=binary))
    assert [output["name"] for output in result.get_response()["outputs"]] == [
        "total", "product", "first",
    ]  # fmt: skip
    np.testing.assert_array_equal(result.as_numpy("total"), [[0, 1.5], [3, 4.5]])
    np.testing.assert_array_equal(result.as_numpy("product"), [[0, 0.5], [2, 4.5]])
    np.testing.assert_array_equal(result.as_numpy("first"), [0, 2])


def test_inputs_and_outputs_may_mix_binary_and_json(serving: Serving) -> None:
    inputs = [pair_inputs(binary=False)[0], pair_inputs(binary=True)[1]]
    outputs = [*wanted("first", binary=False), *wanted("product"), *wanted("total", binary=False)]
    result = serving.client.infer("pair", inputs, outputs=outputs)
    np.testing.assert_array_equal(result.as_numpy("total"), [[0, 1.5], [3, 4.5]])
    np.testing.assert_array_equal(result.as_numpy("product"), [[0, 0.5], [2, 4.5]])
    np.testing.assert_array_equal(result.as_numpy("first"), [0, 2])


def test_only_the_wanted_outputs_are_sent_in_the_wanted_order(serving: Serving) -> None:
    result = serving.client.infer("pair", pair_inputs(), outputs=wanted("first", "total"))
    assert [output["name"] for output in result.get_response()["outputs"]] == ["first", "total"]
    assert result.as_numpy("product") is None
    np.testing.assert_array_equal(result.as_numpy("first"), [0, 2])


def test_names_versions_and_ids_are_echoed(serving: Serving) -> None:
    response = serving.client.infer(
        "pair", pair_inputs(), model_version="7", request_id="mine"
    ).get_response()
    assert response["model_name"] == "pair"
    assert response["model_version"] == "7"
    assert response["id"] == "mine"
    unnamed = {serving.client.infer("pair", pair_inputs()).get_response()["id"] for _ in range(3)}
    assert len(unnamed) == 3


@pytest.mark.parametrize("answer", [None, "gzip", "deflate"])
@pytest.mark.parametrize("request_", [None, "gzip", "deflate"])
def test_bodies_are_compressed_both_ways(
    request_: str | None, answer: str | None, serving: Serving
) -> None:
    for rows in (1, 2000):
        result = serving.client.infer(
            "pair",
            pair_inputs(rows),
            request_compression_algorithm=request_,
            response_compression_algorithm=answer,
        )
        numbers = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
        np.testing.assert_array_equal(result.as_numpy("total"), numbers * 1.5)


def test_compressed_answers_are_shorter(serving: Serving) -> None:
    """By what arrives: the client's own result does not show it."""
    import geventhttpclient

    sizes = {}
    for coding in ("identity", "gzip", "deflate"):
        body, length = triton.InferenceServerClient.generate_request_body(
            echo_input(1.0, rows=2000)
        )
        http = geventhttpclient.HTTPClient("127.0.0.1", serving.server.port)
        response = http.post(
            "/v2/models/echo-fp32/infer",
            body,
            {"Inference-Header-Content-Length": str(length), "Accept-Encoding": coding},
        )
        sizes[coding] = len(response.read())
        assert response.status_code == 200
        http.close()
    assert sizes["identity"] > 24_000
    assert max(sizes["gzip"], sizes["deflate"]) < 2_000


def test_a_body_made_and_parsed_apart_from_the_client_is_understood(serving: Serving) -> None:
    """The library's static functions, as applications with an HTTP client of their own use them."""
    import http.client

    body, length = triton.InferenceServerClient.generate_request_body(
        pair_inputs(), outputs=wanted("first")
    )
    connection = http.client.HTTPConnection("127.0.0.1", serving.server.port, timeout=10)
    connection.request(
        "POST", "/v2/models/pair/infer", body, {"Inference-Header-Content-Length": str(length)}
    )
    response = connection.getresponse()
    result = triton.InferenceServerClient.parse_response_body(
        response.read(), header_length=int(response.headers["Inference-Header-Content-Length"])
    )
    connection.close()
    np.testing.assert_array_equal(result.as_numpy("first"), [0, 2])


def test_async_infer(serving: Serving) -> None:
    pending = [
        (rows, serving.client.async_infer("echo-fp32", echo_input(float(rows), rows=rows)))
        for rows in range(1, 9)
    ]
    for rows, request in pending:
        np.testing.assert_array_equal(
            request.get_result(timeout=10).as_numpy("y"), np.full((rows, 3), float(rows))
        )


def test_async_infer_brings_errors_to_the_caller(serving: Serving) -> None:
    request = serving.client.async_infer("nothing", echo_input())
    assert refusal(request.get_result) == ("404", "no model 'nothing' is served here")


def test_asyncio_client(serving: Serving) -> None:
    import tritonclient.http.aio as triton_aio

    async def ask() -> NDArray[Any]:
        async with triton_aio.InferenceServerClient(serving.address) as client:
            assert await client.is_server_ready()
            result = await client.infer(
                "pair", pair_inputs(), response_compression_algorithm="gzip"
            )
            answer: NDArray[Any] = result.as_numpy("first")
            return answer

    np.testing.assert_array_equal(asyncio.run(ask()), [0, 2])


def test_query_parameters_and_headers_do_not_matter(serving: Serving) -> None:
    result = serving.client.infer(
        "pair", pair_inputs(), query_params={"a": 1, "b": ["x", "ż"]}, headers={"X-Own": "1"}
    )
    np.testing.assert_array_equal(result.as_numpy("first"), [0, 2])


# ── time ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_request_whose_timeout_passes_in_the_queue_is_not_run(serving: Serving) -> None:
    done: queue.Queue[Any] = queue.Queue()

    def keep_busy() -> None:
        with triton.InferenceServerClient(serving.address) as client:
            done.put(client.infer("slow", echo_input(0.4)))

    thread = threading.Thread(target=keep_busy)
    thread.start()
    deadline = time.monotonic() + 5
    while (lane := serving.plane.models["slow"].lane) is None or not lane.busy:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    refused = refusal(lambda: serving.client.infer("slow", echo_input(0.0), timeout=100_000))
    thread.join()
    assert refused == ("503", "model 'slow' did not come to the request within its timeout")
    np.testing.assert_allclose(done.get(timeout=10).as_numpy("y"), [[0.4] * 3], rtol=1e-6)


def test_a_request_that_cannot_be_answered_in_time_is_refused_at_once(serving: Serving) -> None:
    """The slow model's cost claims 1 ms."""
    refused = refusal(lambda: serving.client.infer("slow", echo_input(0.0), timeout=100))
    assert refused == ("503", "model 'slow' is overloaded")


def test_time_enough_is_no_matter(serving: Serving) -> None:
    result = serving.client.infer("echo-fp32", echo_input(), timeout=5_000_000)
    np.testing.assert_array_equal(result.as_numpy("y"), [[1, 1, 1]])


def test_a_timeout_that_is_no_time_is_refused(serving: Serving) -> None:
    status, text = refusal(lambda: serving.client.infer("echo-fp32", echo_input(), timeout=-1))
    assert (status, text) == (
        "400", "parameter 'timeout': must be a whole number of microseconds",
    )  # fmt: skip


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("model", "inputs", "more", "status", "text"),
    [
        ("nothing", echo_input(), {}, "404", "no model 'nothing' is served here"),
        ("pair", pair_inputs(), {"model_version": "8"}, "404", "served in version 7 only"),
        ("strict", pair_inputs()[:1], {}, "400", "input 'x' is missing"),
        ("strict", [tensor("x", np.ones((1, 3)), "FP64")], {}, "400", "expected FP32"),
        (
            "strict", [tensor("x", np.ones((1, 4), np.float32), "FP32")], {},
            "400", "expected [-1, 3]",
        ),
        (
            "strict", [tensor("x", np.ones((0, 3), np.float32), "FP32")], {},
            "400", "holds no items",
        ),
        ("pair", pair_inputs()[:1], {}, "400", "input 'b' is missing"),
        ("strict", echo_input() * 2, {}, "400", "given twice"),
        ("strict", echo_input(), {"outputs": wanted("y", "y")}, "400", "wanted twice"),
        ("strict", echo_input(), {"outputs": wanted("z")}, "400", "'z'"),
        ("strict", echo_input(), {"request_id": "x" * 65}, "400", "id: longer than"),
        ("strict", echo_input(), {"parameters": {"trace": True}}, "403", "trace"),
        ("strict", echo_input(1000.0), {}, "400", "rejected: out_of_range"),
        (
            "strict", echo_input(), {"outputs": [triton.InferRequestedOutput("y", class_count=2)]},
            "400", "classification extension is not supported",
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


def test_shared_memory_is_refused(serving: Serving) -> None:
    item = triton.InferInput("x", [1, 3], "FP32")
    item.set_shared_memory("region", 12)
    assert refusal(lambda: serving.client.infer("strict", [item]))[0] == "400"
    output = triton.InferRequestedOutput("y")
    output.set_shared_memory("region", 12)
    ask = refusal(lambda: serving.client.infer("strict", echo_input(), outputs=[output]))
    assert ask == ("400", "output 'y': shared memory is not supported")


# ── who may ask ──────────────────────────────────────────────────────────────────────────────────


def test_a_token_is_needed_for_all_but_health(
    another: Callable[..., triton.InferenceServerClient],
) -> None:
    client = another(token="s3cret")
    assert client.is_server_live()
    assert client.is_server_ready()
    for headers in (None, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
        for ask in (
            lambda headers=headers: client.infer("strict", echo_input(), headers=headers),
            lambda headers=headers: client.get_model_metadata("strict", headers=headers),
        ):
            status, text = refusal(ask)
            assert status == "401"
            assert "Bearer" in text and "s3cret" not in text
    right = {"Authorization": "Bearer s3cret"}
    assert client.infer("strict", echo_input(), headers=right).as_numpy("y") is not None


def test_a_client_that_asks_too_often_is_told_to_wait(
    another: Callable[..., triton.InferenceServerClient],
) -> None:
    client = another(buckets=Buckets(RateLimit(per_second=0.01, burst=2)))
    for _ in range(2):
        client.infer("strict", echo_input())
    status, text = refusal(lambda: client.infer("strict", echo_input()))
    assert (status, "try again later" in text) == ("429", True)
    assert client.get_model_metadata("strict")["name"] == "strict"


# ── what arrays cannot tell ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("given", "expected"), [("BF16", "FP32"), ("FP32", "BF16")])
def test_half_and_whole_floats_are_not_taken_for_each_other(
    given: str, expected: str, serving: Serving
) -> None:
    item = triton.InferInput("x", [2, 3], given)
    item.set_data_from_numpy(values(given))
    ask = refusal(lambda: serving.client.infer(echo_name(expected), [item]))
    assert ask == ("400", f"input 'x' is {given}, expected {expected}")


def test_bytes_that_the_runtime_cannot_take_are_the_client_s_fault(serving: Serving) -> None:
    item = triton.InferInput("x", [1, 3], "BYTES")
    item.set_data_from_numpy(np.array([[b"\xff\xfe", b"a", b"b"]], np.object_))
    status, text = refusal(lambda: serving.client.infer(echo_name("BYTES"), [item]))
    assert (status, text) == ("400", "input 'x' holds bytes that are not UTF-8")
    assert serving.plane.window_metrics(echo_name("BYTES")).errors == 0
    assert serving.plane.refusals["InputError"] >= 1
