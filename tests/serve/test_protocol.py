"""The Open Inference Protocol over a real socket, JSON and binary."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import numpy as np
import pytest

from edge_agent.serve.oip import MAX_BODY_BYTES
from tests.runtime.networks import images

from .conftest import Running

INFER = "/v2/models/digits/infer"


def json_request(count: int = 1, **more: object) -> dict[str, object]:
    values = images(count)
    tensor = {
        "name": "image",
        "shape": list(values.shape),
        "datatype": "FP32",
        "data": values.ravel().tolist(),
    }
    return {"inputs": [tensor], **more}


def binary_request(count: int = 1, **more: object) -> tuple[bytes, dict[str, str]]:
    data = images(count).tobytes()
    tensor = {
        "name": "image",
        "shape": [count, 8, 8],
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(data)},
    }
    head = json.dumps({"inputs": [tensor], **more}).encode()
    return head + data, {"Inference-Header-Content-Length": str(len(head))}


def expected(running: Running, count: int = 1) -> dict[str, Any]:
    return running.plane.models["digits"].pipeline.run({"image": images(count)}).tensors


def test_json_in_json_out(serving: Running) -> None:
    reply = serving.ask("POST", INFER, json_request(2, id="mine"))
    assert reply.status == 200
    assert reply.json["model_name"] == "digits"
    assert reply.json["model_version"] == "1"
    assert reply.json["id"] == "mine"
    scores, label = reply.json["outputs"]
    assert (scores["name"], scores["datatype"], scores["shape"]) == ("scores", "FP32", [2, 10])
    assert (label["name"], label["datatype"], label["shape"]) == ("label", "INT64", [2])
    answer = expected(serving, 2)
    np.testing.assert_array_equal(np.float32(scores["data"]), answer["scores"].ravel())
    assert label["data"] == answer["label"].tolist()


def test_nested_data_means_the_same_as_flat(serving: Running) -> None:
    nested = json_request(2)
    nested["inputs"][0]["data"] = images(2).tolist()  # type: ignore[index]
    one, other = (serving.ask("POST", INFER, each) for each in (nested, json_request(2)))
    assert one.json["outputs"] == other.json["outputs"]


def test_a_prediction_without_an_id_gets_one(serving: Running) -> None:
    ids = {serving.ask("POST", INFER, json_request()).json["id"] for _ in range(5)}
    assert len(ids) == 5
    assert ids == {prediction.prediction_id for prediction in serving.seen()}


def test_binary_in_json_out(serving: Running) -> None:
    body, headers = binary_request(3)
    reply = serving.ask("POST", INFER, body, headers)
    assert reply.status == 200
    assert reply.json["outputs"][1]["data"] == expected(serving, 3)["label"].tolist()


def test_binary_in_binary_out(serving: Running) -> None:
    body, headers = binary_request(3, parameters={"binary_data_output": True})
    reply = serving.ask("POST", INFER, body, headers)
    length = int(reply.headers["inference-header-content-length"])
    head, tail = json.loads(reply.body[:length]), reply.body[length:]
    sizes = [output["parameters"]["binary_data_size"] for output in head["outputs"]]
    assert sizes == [3 * 10 * 4, 3 * 8]
    assert len(tail) == sum(sizes)
    answer = expected(serving, 3)
    np.testing.assert_array_equal(
        np.frombuffer(tail[: sizes[0]], "<f4").reshape(3, 10), answer["scores"]
    )
    np.testing.assert_array_equal(np.frombuffer(tail[sizes[0] :], "<i8"), answer["label"])


def test_an_output_overrides_the_request_and_unnamed_ones_are_left_out(serving: Running) -> None:
    request = json_request(
        1,
        parameters={"binary_data_output": True},
        outputs=[{"name": "label", "parameters": {"binary_data": False}}],
    )
    reply = serving.ask("POST", INFER, request)
    assert [output["name"] for output in reply.json["outputs"]] == ["label"]
    assert "inference-header-content-length" not in reply.headers


def test_a_raw_body_is_the_one_input(serving: Running) -> None:
    reply = serving.ask(
        "POST", INFER, images(4).tobytes(), {"Inference-Header-Content-Length": "0"}
    )
    length = int(reply.headers["inference-header-content-length"])
    assert json.loads(reply.body[:length])["outputs"][0]["shape"] == [4, 10]


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_a_compressed_body_is_inflated_before_its_head_is_cut(
    encoding: str, compress: Any, serving: Running
) -> None:
    body, headers = binary_request(2)
    reply = serving.ask("POST", INFER, compress(body), {**headers, "Content-Encoding": encoding})
    assert reply.status == 200
    assert reply.json["outputs"][1]["data"] == expected(serving, 2)["label"].tolist()


def test_a_body_that_inflates_beyond_the_bound_is_refused(quick_serving: Running) -> None:
    bomb = gzip.compress(b"\0" * (MAX_BODY_BYTES + 1))
    reply = quick_serving.ask("POST", INFER, bomb, {"Content-Encoding": "gzip"})
    assert reply.status == 413


def test_metadata_health_and_index(serving: Running) -> None:
    assert "binary_tensor_data" in serving.ask("GET", "/v2").json["extensions"]
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/digits/ready"):
        assert serving.ask("GET", path).status == 200
    metadata = serving.ask("GET", "/v2/models/digits").json
    assert metadata == serving.ask("GET", "/v2/models/digits/versions/1").json
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 8, 8]}]
    for body in (None, "", "{}"):
        index = serving.ask("POST", "/v2/repository/index", body).json
        assert index[0]["name"] == "digits"
        assert index[0]["state"] == "READY"


def test_a_model_s_name_is_percent_decoded(quick_serving: Running) -> None:
    assert quick_serving.ask("GET", "/v2/models/%64igits/ready").status == 200


def test_a_version_in_the_path_is_honoured(quick_serving: Running) -> None:
    path = "/v2/models/digits/versions/{}/infer"
    assert quick_serving.ask("POST", path.format(1), json_request()).status == 200
    reply = quick_serving.ask("POST", path.format(2), json_request())
    assert reply.status == 404
    assert reply.error == "model 'digits' is served in version 1 only"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/nothing", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/other/ready", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("GET", "/v2/models/digits/nothing", 404),
        ("GET", INFER, 405),
        ("POST", "/v2", 405),
        ("GET", "/status", 404),
    ],
)
def test_wrong_paths_and_methods(
    method: str, path: str, status: int, quick_serving: Running
) -> None:
    reply = quick_serving.ask(method, path)
    assert reply.status == status
    assert reply.error


def tensor(**changes: object) -> dict[str, object]:
    return {
        "inputs": [
            {"name": "image", "shape": [1, 8, 8], "datatype": "FP32", "data": [0] * 64} | changes
        ]
    }


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "the request is not valid"),
        ("{", "the request is not valid"),
        ("nonsense", "the request is not valid"),
        ("[" * 100_000, "the request is not valid"),
        ('{"inputs": []}', "input 'image' is missing"),
        ('{"inputs": [{"name": 3}]}', "the request is not valid"),
        (b"\xff\xfe{}", "the request is not valid"),
        (tensor(name="imgae"), "input 'image' is missing"),
        (tensor(data=[0] * 63), "63 values do not make the shape [1, 8, 8]"),
        (tensor(data=[[0] * 64]), "input 'image'"),
        (tensor(data=[[[0] * 8] * 7]), "56 values do not make"),
        (tensor(data=[[[0] * 8] * 7 + [[0] * 7]]), "input 'image'"),
        (tensor(data=["a"] * 64), "input 'image'"),
        (tensor(data=[None] * 64), "input 'image'"),
        (tensor(data=[1e300] * 64), "input 'image'"),
        (tensor(data=None), "input 'image'"),
        (tensor(datatype="FP64"), "input 'image' is float64, expected FP32"),
        (tensor(datatype="FP16"), "input 'image' is float16, expected FP32"),
        (tensor(datatype="FLOAT"), "datatype 'FLOAT' is not supported"),
        (tensor(datatype="INT8", data=[300] * 64), "input 'image'"),
        (tensor(datatype="INT64", data=[1.5] * 64), "input 'image'"),
        (tensor(datatype="UINT8", data=[-1] * 64), "input 'image'"),
        (tensor(shape=[-1, 8, 8]), "shape [-1, 8, 8] is not valid"),
        (tensor(shape=[1] * 40), "is not valid"),
        (tensor(shape=[2**62, 2**62]), "do not make the shape"),
        (tensor(shape=[0, 8, 8], data=[]), "holds no items"),
        (tensor(shape=[64]), "expected [-1, 8, 8]"),
        (tensor(parameters={"binary_data_size": 256}), "binary_data_size 256 exceeds the body"),
        (tensor(parameters={"binary_data_size": -1}), "binary_data_size -1"),
        (tensor(parameters={"binary_data_size": "9"}), "binary_data_size '9'"),
        ({**tensor(), "id": "x" * 65}, "id: longer than 64 characters"),
        ({**tensor(), "outputs": [{"name": "nope"}]}, "unknown output 'nope'"),
        (
            {**tensor(), "outputs": [{"name": "scores", "parameters": {"classification": 3}}]},
            "classification extension",
        ),
        (tensor(data=[99] * 64), "rejected: out_of_range: 'image' leaves [0, 16]"),
    ],
)
def test_a_wrong_request_is_one_clear_line_with_400(
    body: str | bytes | dict[str, object], message: str, quick_serving: Running
) -> None:
    reply = quick_serving.ask("POST", INFER, body)
    assert reply.status == 400
    assert message in reply.error
    assert quick_serving.ask("POST", INFER, json_request()).status == 200


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"Inference-Header-Content-Length": "99999"}, "a JSON head of 99999 bytes"),
        ({"Inference-Header-Content-Length": "-1"}, "is not a number"),
        ({"Inference-Header-Content-Length": "abc"}, "is not a number"),
        ({"Inference-Header-Content-Length": "0"}, "do not make FP32"),
        ({"Inference-Header-Content-Length": "5"}, "the request is not valid"),
        ({"Content-Encoding": "br"}, "'br' is not supported"),
        ({"Content-Encoding": "gzip"}, "the body is not gzip"),
    ],
)
def test_headers_that_do_not_fit_the_body_are_refused(
    headers: dict[str, str], message: str, quick_serving: Running
) -> None:
    reply = quick_serving.ask("POST", INFER, json.dumps(json_request()), headers)
    assert reply.status == 400
    assert message in reply.error


def test_a_compressed_body_that_is_cut_short_is_refused(quick_serving: Running) -> None:
    body = gzip.compress(json.dumps(json_request()).encode())[:-20]
    reply = quick_serving.ask("POST", INFER, body, {"Content-Encoding": "gzip"})
    assert reply.status == 400


def test_bytes_after_the_last_tensor_are_refused(quick_serving: Running) -> None:
    body, headers = binary_request()
    reply = quick_serving.ask("POST", INFER, body + b"1234", headers)
    assert reply.status == 400
    assert "4 bytes after the last binary tensor" in reply.error


def test_an_unaligned_tensor_is_read_right(quick_serving: Running) -> None:
    for padding in range(4):
        body, headers = binary_request(2, id="x" * padding)
        reply = quick_serving.ask("POST", INFER, body, headers)
        assert reply.json["outputs"][1]["data"] == expected(quick_serving, 2)["label"].tolist()


@pytest.mark.parametrize("shape", [[0, 2**63], [0, 2**64 - 1], [0, 2**40, 2**40]])
def test_a_shape_without_elements_and_beyond_measure_is_a_bad_request(
    quick_serving: Running, shape: list[int]
) -> None:
    tensor = {"name": "image", "shape": shape, "datatype": "FP32"}
    as_json = {"inputs": [{**tensor, "data": []}]}
    as_binary = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": 0}}]})
    length = {"Inference-Header-Content-Length": str(len(as_binary))}
    assert quick_serving.ask("POST", INFER, as_json).status == 400
    assert quick_serving.ask("POST", INFER, as_binary, length).status == 400


def test_a_label_beyond_measure_is_a_bad_request(quick_serving: Running) -> None:
    body: dict[str, object] = {"id": "p", "label": "x" * 201}
    reply = quick_serving.ask("POST", "/v2/models/digits/feedback", body)
    assert reply.status == 400 and "200" in reply.error


# ── configuration, statistics, repository ────────────────────────────────────────────────────────


def test_the_configuration_describes_what_is_served(quick_serving: Running) -> None:
    config = quick_serving.ask("GET", "/v2/models/digits/config").json
    assert config == quick_serving.ask("GET", "/v2/models/digits/versions/1/config").json
    assert config["name"] == "digits"
    assert config["platform"] == "skerry_onnxruntime"
    assert config["max_batch_size"] == 0  # so that the dims hold the batch axis
    assert config["version_policy"] == {"specific": {"versions": [1]}}
    assert config["input"] == [{"name": "image", "data_type": "TYPE_FP32", "dims": [-1, 8, 8]}]
    assert [(each["name"], each["data_type"]) for each in config["output"]] == [
        ("scores", "TYPE_FP32"),
        ("label", "TYPE_INT64"),
    ]
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_CPU"}]


def test_statistics_count_answers_failures_and_batches(quick_serving: Running) -> None:
    for count in (1, 3, 3):
        assert quick_serving.ask("POST", INFER, json_request(count)).status == 200
    assert quick_serving.ask("POST", INFER, tensor(data=[99] * 64)).status == 400
    (of_one,) = quick_serving.ask("GET", "/v2/models/digits/stats").json["model_stats"]
    (of_all,) = quick_serving.ask("GET", "/v2/models/stats").json["model_stats"]
    assert of_one == of_all
    assert (of_one["name"], of_one["version"]) == ("digits", "1")
    assert (of_one["inference_count"], of_one["execution_count"]) == (7, 3)
    stats = of_one["inference_stats"]
    assert (stats["success"]["count"], stats["fail"]["count"]) == (3, 1)
    assert stats["success"]["ns"] > 3000
    batches = {each["batch_size"]: each["compute_infer"]["count"] for each in of_one["batch_stats"]}
    assert batches == {1: 1, 4: 2}  # by powers of two


def test_only_signed_updates_change_what_is_served(quick_serving: Running) -> None:
    for what in ("load", "unload"):
        path = f"/v2/repository/models/digits/{what}"
        reply = quick_serving.ask("POST", path, {"parameters": {}})
        assert reply.status == 501
        assert "signed updates" in reply.error
        assert quick_serving.ask("GET", path).status == 405
    assert quick_serving.ask("POST", INFER, json_request()).status == 200


@pytest.mark.parametrize("what", ["", "/ready", "/config", "/stats"])
def test_nothing_is_told_of_a_version_that_is_not_served(what: str, quick_serving: Running) -> None:
    assert quick_serving.ask("GET", f"/v2/models/digits/versions/1{what}").status == 200
    assert quick_serving.ask("GET", f"/v2/models/digits/versions/2{what}").status == 404
    assert quick_serving.ask("GET", f"/v2/models/none{what}").status == 404
    assert quick_serving.ask("POST", f"/v2/models/digits{what}").status == 405


def test_readiness_follows_what_is_installed(quick_serving: Running) -> None:
    model = quick_serving.plane.models["digits"]
    quick_serving.plane.models = {}
    assert quick_serving.ask("GET", "/v2/health/live").json == {"live": True}
    reply = quick_serving.ask("GET", "/v2/health/ready")
    assert (reply.status, reply.error) == (503, "no model is installed yet")
    assert quick_serving.ask("GET", "/v2/models/digits/ready").status == 404
    assert quick_serving.ask("POST", "/v2/repository/index").json == []
    quick_serving.plane.install("digits", model)
    assert quick_serving.ask("GET", "/v2/health/ready").json == {"ready": True}
    assert quick_serving.ask("GET", "/v2/models/digits/ready").json == {"ready": True}
