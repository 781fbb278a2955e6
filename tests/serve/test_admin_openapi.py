"""The OpenAPI document against the living server that it describes, administrative routes too."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import APIOperation, GenerationMode, checks

from edge_agent.serve import Server
from edge_agent.serve.openapi import document
from tests.runtime.networks import images

from .clients import binary_body, json_body, watched
from .conftest import Running, serve

SCHEMA = schemathesis.openapi.from_dict(document())
OPERATIONS = {
    operation.definition.raw["operationId"]: operation
    for operation in (result.ok() for result in SCHEMA.get_all_operations())
}
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    yield from serve(uvloop.new_event_loop(), tmp_path_factory.mktemp("openapi"))


@pytest.fixture(scope="module")
def address(running: Running) -> Iterator[str]:
    """Where the administrative socket can be reached over TCP."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(running.unix_path)
        await asyncio.gather(
            pump(reader, inner_writer), pump(inner_reader, writer), return_exceptions=True
        )

    async def start() -> asyncio.Server:
        return await asyncio.start_server(relay, "127.0.0.1", 0)

    async def stop(server: asyncio.Server) -> None:
        server.close()
        await server.wait_closed()

    server = running.call(start())
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    running.call(stop(server))


@pytest.fixture(scope="module")
def operator(address: str) -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def path_of(operation: APIOperation[Any, Any, Any, Any]) -> str:
    return str(operation.path).format(model="digits", version="1")


def hold(name: str, response: requests.Response) -> None:
    """The answer is one that the document tells of."""
    operation = OPERATIONS[name]
    assert str(response.status_code) in operation.definition.raw["responses"]
    operation.validate_response(response)


def test_the_document_is_valid() -> None:
    SCHEMA.validate()


def test_every_operation_has_a_name_of_its_own() -> None:
    count = sum(len(methods) for methods in document()["paths"].values())  # type: ignore[arg-type, misc, union-attr]
    assert len(OPERATIONS) == count
    assert all(re.fullmatch("[a-z][A-Za-z]+", name) for name in OPERATIONS)


def test_the_server_serves_the_document_to_its_operator_alone(
    running: Running, address: str, operator: requests.Session
) -> None:
    assert operator.get(f"{address}/openapi.json").json() == document()
    assert running.ask("GET", "/openapi.json").status == 404


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_described_route_is_there_and_takes_no_other_method(
    name: str, address: str, operator: requests.Session
) -> None:
    operation = OPERATIONS[name]
    url = address + path_of(operation)
    right = operator.request(operation.method.upper(), url)
    assert right.status_code not in (404, 405)
    for method in METHODS:
        if method != operation.method.upper():
            wrong = operator.request(method, url)
            assert wrong.status_code == 405, method
            assert wrong.headers["Allow"] == operation.method.upper()
            assert list(wrong.json()) == ["error"]


VALID: list[tuple[str, Any, dict[str, str]]] = [
    ("infer", json_body(2, id="known"), {"Content-Type": "application/json"}),
    ("inferOfVersion", json_body(), {"Content-Type": "application/json"}),
    ("infer", json_body(parameters={"trace": True}), {"Content-Type": "application/json"}),
    ("infer", images(2).tobytes(), {"Inference-Header-Content-Length": "0"}),
    ("predict", {"inputs": {"image": images(1).tolist()}, "id": "mine"}, {}),
    ("predict", {"instances": images(3).tolist()}, {}),
    ("predictOfVersion", {"instances": images(1).tolist()}, {}),
    ("feedback", {"id": "known", "label": "3"}, {}),
    ("index", None, {}),
    ("index", {}, {}),
    *[(name, None, {}) for name, each in OPERATIONS.items() if each.method == "get"],
]


@pytest.mark.parametrize(
    ("name", "body", "headers"), VALID, ids=[f"{i}-{v[0]}" for i, v in enumerate(VALID)]
)
def test_a_right_request_gets_a_right_answer(
    name: str, body: Any, headers: dict[str, str], address: str, operator: requests.Session
) -> None:
    if name == "feedback":
        operator.post(f"{address}/v2/models/digits/infer", json_body(id="known"))
    operation = OPERATIONS[name]
    data = {"data": body} if isinstance(body, bytes) else {"json": body}
    response = operator.request(
        operation.method.upper(), address + path_of(operation), headers=headers, **data
    )
    assert response.status_code == 200, response.text
    hold(name, response)


def test_binary_outputs_are_described_too(address: str, operator: requests.Session) -> None:
    body, header = binary_body(
        images(2).tobytes(), [2, 8, 8], parameters={"binary_data_output": True}
    )
    key, _, value = header.decode().partition(": ")
    url = address + path_of(OPERATIONS["infer"])
    response = operator.post(url, body, headers={key: value})
    assert response.headers["Content-Type"] == "application/octet-stream"
    hold("infer", response)


def test_a_control_of_the_repository_is_refused_as_described(
    address: str, operator: requests.Session
) -> None:
    for name in ("load", "unload"):
        response = operator.post(address + path_of(OPERATIONS[name]))
        assert response.status_code == 501
        hold(name, response)


def test_feedback_where_nobody_takes_it_is_refused_as_described(running: Running) -> None:
    async def make() -> Server:
        server = Server(running.plane)
        await server.start()
        return server

    server = running.call(make())
    url = f"http://127.0.0.1:{server.port}/v2/models/digits/feedback"
    response = requests.post(url, json={"id": "known", "label": "3"}, timeout=10)
    running.call(server.stop())
    assert response.status_code == 501
    hold("feedback", response)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_generated_requests_find_no_answer_that_is_not_described(
    mode: GenerationMode, running: Running, address: str, operator: requests.Session
) -> None:
    sent = 0
    mode_checks = [checks.negative_data_rejection] if mode is GenerationMode.NEGATIVE else []
    for operation in OPERATIONS.values():
        known = {"model": "digits", "version": "1"}
        known = {name: value for name, value in known.items() if f"{{{name}}}" in operation.path}
        described = operation.definition.raw.get("requestBody", {"required": False})
        if mode is GenerationMode.NEGATIVE and not described["required"]:
            continue  # any body will do, so none is wrong
        cases = operation.as_strategy(mode, path_parameters=known or None)
        if mode is GenerationMode.POSITIVE:
            cases = st.one_of(cases, operation.as_strategy(mode))

        @settings(
            max_examples=12 if mode is GenerationMode.POSITIVE else 20,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(cases)
        def check(case: Any) -> None:
            nonlocal sent
            sent += 1
            response = case.call(base_url=address, session=operator)
            assert response.status_code != 500, response.text
            case.validate_response(response, checks=CHECKS + mode_checks)

        check()
    assert sent >= 100
    with watched(running) as neighbour:
        neighbour.ask()
