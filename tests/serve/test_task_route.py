"""The task route: JSON or an image in, names and scores out."""

from __future__ import annotations

import gzip
import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_agent.serve import ServedModel
from edge_agent.wire.manifest import ImageSpec, StepSpec, TensorSpec
from tests.runtime.networks import LABELS, STEPS, images, write_bundle

from .conftest import Reply, Running, until
from .gates import alter, gated
from .test_protocol import INFER, json_request

PREDICT = "/v2/models/digits/predict"
PNG = {"Content-Type": "image/png"}


@pytest.fixture
def looking(quick_serving: Running, tmp_path: Path) -> Running:
    """The digits model, which takes grey images of 64 pixels and no larger ones."""
    manifest = write_bundle(tmp_path / "looking", version=2, seed=2, cost_us=50)
    alter(tmp_path / "looking", manifest, image=ImageSpec(input="image", mode="L", max_pixels=64))
    quick_serving.plane.install("digits", ServedModel.load(tmp_path / "looking"))
    return quick_serving


def picture(height: int = 8, width: int = 8, seed: int = 0) -> np.ndarray[Any, Any]:
    """Grey values in the digits' range, uint8."""
    values = np.random.default_rng(seed).integers(0, 17, (height, width))
    return values.astype(np.uint8)


def png(array: np.ndarray[Any, Any], form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, form)
    return file.getvalue()


def check(running: Running, reply: Reply, values: np.ndarray[Any, Any]) -> None:
    """The reply must say of `values` what the pipeline does."""
    assert reply.status == 200, reply.body
    answer = running.plane.models["digits"].pipeline.run({"image": values.astype(np.float32)})
    scores, labels = answer.tensors["scores"], answer.tensors["label"]
    body = reply.json
    assert list(body) == ["model_name", "model_version", "id", "predictions"]
    assert body["model_name"] == "digits"
    assert body["model_version"] == str(running.plane.models["digits"].version)
    assert [each["label"] for each in body["predictions"]] == [LABELS[label] for label in labels]
    for each, row, label in zip(body["predictions"], scores, labels, strict=True):
        np.testing.assert_array_equal(np.float32(each["scores"]), row)
        assert np.float32(each["score"]) == row[label]


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────


def test_named_inputs_make_one_item_or_a_batch(serving: Running) -> None:
    values = images(3)
    for given, wanted in ((values, values), (values[0], values[:1])):
        reply = serving.ask("POST", PREDICT, {"inputs": {"image": given.tolist()}})
        check(serving, reply, wanted)


def test_instances_make_a_batch(quick_serving: Running) -> None:
    values = images(2)
    for instances in (values.tolist(), [{"image": each} for each in values.tolist()]):
        reply = quick_serving.ask("POST", PREDICT, {"instances": instances})
        check(quick_serving, reply, values)


def test_an_id_is_kept_and_known_to_feedback(quick_serving: Running) -> None:
    instances: list[object] = images(1).tolist()
    mine = quick_serving.ask("POST", PREDICT, {"instances": instances, "id": "mine"})
    made = quick_serving.ask("POST", PREDICT, {"instances": instances})
    assert mine.json["id"] == "mine"
    assert [each.prediction_id for each in quick_serving.seen()] == ["mine", made.json["id"]]
    feedback = "/v2/models/digits/feedback"
    assert quick_serving.ask("POST", feedback, {"id": "mine", "label": "7"}).status == 200


def test_a_version_in_the_path_is_honoured(quick_serving: Running) -> None:
    body: dict[str, object] = {"instances": images(1).tolist()}
    path = "/v2/models/digits/versions/{}/predict"
    check(quick_serving, quick_serving.ask("POST", path.format(1), body), images(1))
    assert quick_serving.ask("POST", path.format(2), body).status == 404
    assert quick_serving.ask("POST", "/v2/models/none/predict", body).status == 404
    assert quick_serving.ask("GET", PREDICT).status == 405


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "the body is not understood"),
        ("{", "the body is not understood"),
        ("[]", "the body is not understood"),
        ("{}", '"inputs" or "instances"'),
        ({"inputs": {}, "instances": []}, '"inputs" or "instances"'),
        ({"instances": []}, "holds no items"),
        ({"inputs": {}}, "input 'image' is missing"),
        ({"inputs": {"imgae": 1}}, "unknown input 'imgae'; did you mean 'image'?"),
        ({"inputs": {"image": 1}}, "nested 0 deep"),
        ({"inputs": {"image": [["a"]]}}, "input 'image'"),
        ({"instances": [[[1.0] * 8] * 7]}, "expected [-1, 8, 8]"),
        ({"instances": [[[1.0] * 8] * 8], "id": "x" * 65}, "id: longer than 64 characters"),
        ({"instances": [[[1.0] * 8] * 8], "parameters": {"timeout": -1}}, "'timeout'"),
        ({"instances": [[[99.0] * 8] * 8]}, "rejected: out_of_range"),
        ({"instances": [[[1e39] * 8] * 8]}, "too large for the datatype"),
    ],
)
def test_a_wrong_request_is_one_clear_line_with_400(
    body: str | dict[str, object], message: str, quick_serving: Running
) -> None:
    reply = quick_serving.ask("POST", PREDICT, body)
    assert reply.status == 400
    assert message in reply.error


def test_a_compressed_body_is_understood_and_the_answer_compressed(
    quick_serving: Running,
) -> None:
    for count in (1, 60):  # the larger one is compressed and inflated in a thread
        values = images(count)
        body = gzip.compress(json.dumps({"instances": values.tolist()}).encode())
        headers = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
        reply = quick_serving.ask("POST", PREDICT, body, headers)
        if reply.headers.get("content-encoding") == "gzip":
            reply.body = gzip.decompress(reply.body)
        assert ("content-encoding" in reply.headers) is (count > 1)
        check(quick_serving, reply, values)


def test_a_timeout_counts_here_too(quick_serving: Running, tmp_path: Path) -> None:
    model, _ = gated(tmp_path, cost_us=2e6)
    quick_serving.plane.install("digits", model)
    body: dict[str, object] = {
        "instances": images(1).tolist(),
        "parameters": {"timeout": 1_000_000},
    }
    assert quick_serving.ask("POST", PREDICT, body).status == 503


# ── images ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "headers",
    [PNG, {"Content-Type": "IMAGE/PNG"}, {}, {"Content-Type": "application/octet-stream"}],
    ids=["image", "upper case", "no type", "bytes"],
)
def test_an_image_is_an_item(headers: dict[str, str], looking: Running) -> None:
    reply = looking.ask("POST", PREDICT, png(picture()), headers)
    check(looking, reply, picture()[None])


def test_many_images_get_their_own_answers(looking: Running) -> None:
    for seed in range(5):
        reply = looking.ask("POST", PREDICT, png(picture(seed=seed), "BMP"), PNG)
        check(looking, reply, picture(seed=seed)[None])


def test_a_model_without_an_image_takes_json_only(quick_serving: Running) -> None:
    reply = quick_serving.ask("POST", PREDICT, png(picture()), PNG)
    assert (reply.status, reply.error) == (400, "model 'digits' takes no images; send JSON")


def test_too_many_pixels_are_413(looking: Running) -> None:
    reply = looking.ask("POST", PREDICT, png(picture(9, 8)), PNG)
    assert (reply.status, reply.error) == (413, "the image has 8×9 pixels, allowed are 64")


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        (b"no image", PNG, "no image of a known format"),
        (b"", PNG, "no image of a known format"),
        (b"no image", {}, "no image of a known format"),
        (png(picture())[:-30], PNG, "cannot be decoded"),
        (png(picture(4, 4)), PNG, "expected [-1, 8, 8]"),
        (png(picture() + np.uint8(100)), PNG, "rejected: out_of_range"),
        (png(picture()), {"Content-Type": "application/json"}, "the body is not understood"),
        (json.dumps({"instances": []}).encode(), PNG, "no image of a known format"),
    ],
    ids=["text", "nothing", "no type", "cut", "small", "bright", "said to be JSON", "JSON"],
)
def test_a_wrong_image_is_one_clear_line_with_400(
    body: bytes, headers: dict[str, str], message: str, looking: Running
) -> None:
    reply = looking.ask("POST", PREDICT, body, headers)
    assert reply.status == 400
    assert message in reply.error


def test_json_still_goes_to_a_model_that_takes_images(looking: Running) -> None:
    for headers in ({}, {"Content-Type": "application/json; charset=utf-8"}):
        body = " \n" + json.dumps({"instances": images(2).tolist()})
        check(looking, looking.ask("POST", PREDICT, body, headers), images(2))


def test_an_image_beside_other_inputs_is_not_offered(
    quick_serving: Running, tmp_path: Path
) -> None:
    hint = TensorSpec(name="hint", datatype="FP32", shape=(-1, 1))
    manifest = write_bundle(
        tmp_path / "two",
        version=2,
        steps=STEPS[2:],
        cost_us=50,
        with_golden=False,
    )
    alter(
        tmp_path / "two",
        manifest,
        inputs=(*manifest.inputs, hint),
        image=ImageSpec(input="image", mode="L"),
    )
    quick_serving.plane.install("digits", ServedModel.load(tmp_path / "two"))
    reply = quick_serving.ask("POST", PREDICT, png(picture()), PNG)
    assert reply.status == 501
    assert "send tensors" in reply.error
    body: dict[str, object] = {"inputs": {"image": images(1).tolist(), "hint": [[1.0]]}}
    assert quick_serving.ask("POST", PREDICT, body).status == 200


def test_decoding_an_image_holds_up_nobody(looking: Running, tmp_path: Path) -> None:
    """While an image waits to be decoded others are answered, and a version may be replaced."""
    side = looking.server._routes._inference._images
    go_on = threading.Event()
    side._executor.submit(go_on.wait, 10)
    replies: list[Reply] = []
    client = threading.Thread(
        target=lambda: replies.append(looking.ask("POST", PREDICT, png(picture()), PNG))
    )
    client.start()
    until(lambda: side.waiting == 1)
    assert looking.ask("POST", INFER, json_request()).status == 200
    model = looking.plane.models["digits"]
    looking.plane.revert("digits")
    until(lambda: model._closed)
    go_on.set()
    client.join()
    check(looking, replies[0], picture()[None])


LONG = 400
"""Items whose JSON is longer than is decoded on the event loop."""


def long_body(path: str) -> bytes:
    values = images(LONG)
    tensor = {
        "name": "image",
        "shape": list(values.shape),
        "datatype": "FP32",
        "data": values.ravel().tolist(),
    }
    body = {"inputs": [tensor]} if path == INFER else {"instances": values.tolist()}
    return json.dumps(body).encode()


def labels(reply: Reply) -> list[str]:
    assert reply.status == 200, reply.body
    if "predictions" in reply.json:
        return [each["label"] for each in reply.json["predictions"]]
    [found] = [each["data"] for each in reply.json["outputs"] if each["name"] == "label"]
    return [LABELS[index] for index in found]


@pytest.mark.parametrize("coding", ["plain", "gzip"])
@pytest.mark.parametrize("path", [PREDICT, INFER])
def test_decoding_long_json_holds_up_nobody(path: str, coding: str, looking: Running) -> None:
    """While a long body waits to be decoded others are answered; a version may be replaced."""
    side = looking.server._routes._inference._side
    replies: list[Reply] = []
    body, headers = long_body(path), {"Content-Type": "application/json"}
    if coding == "gzip":
        body, headers = gzip.compress(body), {**headers, "Content-Encoding": "gzip"}
    expected = labels(looking.ask("POST", path, body, headers))
    go_on = threading.Event()
    side._executor.submit(go_on.wait, 10)
    client = threading.Thread(
        target=lambda: replies.append(looking.ask("POST", path, body, headers))
    )
    client.start()
    until(lambda: side.waiting == 1)
    for _ in range(3):
        assert looking.ask("POST", INFER, json_request()).status == 200
    looking.plane.revert("digits")
    go_on.set()
    client.join()
    assert len(expected) == LONG
    assert labels(replies[0]) != expected, "the version that came meanwhile has other weights"
    assert replies[0].json["model_version"] == "1"
    assert labels(looking.ask("POST", path, body, headers)) == labels(replies[0])


@pytest.mark.parametrize("path", [PREDICT, INFER])
def test_what_is_wrong_with_long_json_is_told_all_the_same(
    path: str, quick_serving: Running
) -> None:
    body = long_body(path)
    for damaged in (body[:-1], body[: body.rindex(b"]")] + b', "a"]}'):
        reply = quick_serving.ask("POST", path, damaged, {"Content-Type": "application/json"})
        assert reply.status == 400
        assert reply.error


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def unnamed(quick_serving: Running, tmp_path: Path) -> Running:
    """A model that finds ten classes and names one."""
    manifest = write_bundle(tmp_path / "few", version=2, cost_us=50, with_golden=False)
    alter(tmp_path / "few", manifest, labels=("zero",))
    quick_serving.plane.install("digits", ServedModel.load(tmp_path / "few"))
    return quick_serving


def test_an_index_without_a_name_is_an_error_not_silence(unnamed: Running) -> None:
    statuses = {
        unnamed.ask("POST", PREDICT, {"instances": images(8, seed).tolist()}).status
        for seed in range(3)
    }
    assert statuses == {500}


def test_an_item_that_no_class_fits_is_unknown(quick_serving: Running, tmp_path: Path) -> None:
    steps = (*STEPS, StepSpec(name="label", config={"threshold": 0.9999999}))
    manifest = write_bundle(
        tmp_path / "strict", version=2, steps=steps, cost_us=50, with_golden=False
    )
    alter(tmp_path / "strict", manifest, outputs=(manifest.outputs[1],))
    quick_serving.plane.install("digits", ServedModel.load(tmp_path / "strict"))
    reply = quick_serving.ask("POST", PREDICT, {"instances": np.zeros((1, 8, 8)).tolist()})
    assert reply.json["predictions"] == [{"label": "unknown"}]
