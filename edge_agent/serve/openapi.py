"""The agent's HTTP surface as an OpenAPI 3.1 document, for clients, tools and tests.

It tells every route, body and status, so it changes whenever a route does; a test holds it against
a living server.  Answers are described strictly (nothing else stands in them), requests as far as
they are checked without knowing the model: whether tensors fit is the model's interface to say.

It knows no route of its own and serves nothing.

Source: spec.openapis.org/oas/v3.1.0; the inference routes after
github.com/kserve/open-inference-protocol (inference_rest.md) and
github.com/triton-inference-server/server/tree/main/docs/protocol
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

from pydantic import JsonValue

from edge_agent.serve.administration import COMMANDS, MAX_VALUE_CHARS
from edge_agent.serve.metadata import EXTENSIONS, agent_version
from edge_agent.serve.oip import MAX_BODY_BYTES, MAX_ID_CHARS

Schema: TypeAlias = dict[str, JsonValue]

_JSON: Final = "application/json"
_BINARY: Final = "application/octet-stream"
_DATATYPES: Final = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BF16", "BYTES",
)  # fmt: skip

_STRING: Final[Schema] = {"type": "string"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_OPEN: Final[Schema] = {"type": "object"}


def document() -> dict[str, JsonValue]:
    """The whole document; without the data of any model."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Skerry agent",
            "version": agent_version(),
            "description": (
                "Open Inference Protocol v2 with the binary tensor extension, beside it routes for"
                " tasks, corrections and operation.  Routes tagged 'administration' are on the"
                " administrative Unix socket only."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"token": []}],
        "tags": [
            {"name": "inference", "description": "predictions, by tensors or by task"},
            {"name": "models", "description": "what is served"},
            {"name": "health", "description": "whether it lives and can serve"},
            {"name": "administration", "description": "for the device's own operator"},
        ],
        "paths": _paths(),
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(),
            "responses": _refusals(),
            "parameters": {
                "model": _in_path("model", "the model's name, percent-encoded"),
                "version": _in_path("version", "the version that must serve; another is 404"),
            },
        },
    }


# ── paths ────────────────────────────────────────────────────────────────────────────────────────


def _paths() -> Schema:
    paths: Schema = {
        "/v2": _get("server", "models", "Metadata of the server", _ref("Server")),
        "/v2/health/live": _get("live", "health", "Whether the process answers", _ref("Live")),
        "/v2/health/ready": _get("ready", "health", "Whether a model is served", _ref("Ready")),
        "/v2/models/stats": _get(
            "allStatistics", "models", "Counts of all models", _ref("Statistics")
        ),
        "/v2/repository/index": _post(
            "index", "models", "The models that are served", {"200": _json(_ref("Index"))},
            body=_body({_JSON: {}}, required=False),
        ),
        "/v2/models/{model}/feedback": _post(
            "feedback", "inference", "Correct an earlier prediction",
            {"200": _json(_ref("Accepted"))}, "404", "501", parameters=["model"],
            body=_body({_JSON: _ref("Feedback")}),
        ),
        "/metrics": _get(
            "metrics", "health", "Figures as Prometheus text", _STRING,
            kind="text/plain; version=0.0.4; charset=utf-8",
        ),
        "/status": _get("status", "administration", "What the agent is doing", _OPEN, "404"),
        "/openapi.json": _get("openapi", "administration", "This document", _OPEN),
        "/update/pause": _command("pause", "Begin no update until resumed, across restarts too"),
        "/update/resume": _command("resume", "Go on with updates"),
        "/update/install": _command("install", "Install from a directory of this machine"),
    }  # fmt: skip
    for action in ("load", "unload"):
        paths[f"/v2/repository/models/{{model}}/{action}"] = _post(
            action, "models", "Refused: signed updates decide what is served", {}, "501",
            parameters=["model"], body=_body({_JSON: {}}, required=False),
        )  # fmt: skip
    for versions, suffix in (("", ""), ("/versions/{version}", "OfVersion")):
        names = ["model", "version"] if versions else ["model"]
        paths |= _model_paths(f"/v2/models/{{model}}{versions}", suffix, names)
    return paths


def _command(name: str, summary: str) -> Schema:
    """A route of `administration.COMMANDS`."""
    keys = COMMANDS[name]
    told = {key: _STRING | {"minLength": 1, "maxLength": MAX_VALUE_CHARS} for key in keys}
    return _post(
        name, "administration", summary, {"200": _json(_OPEN)}, "409", "501",
        body=_body({_JSON: _exactly(**told)}, required=bool(keys)),
    )  # fmt: skip


def _model_paths(base: str, suffix: str, names: list[str]) -> Schema:
    """The routes that a version may be named for."""
    return {
        base: _get(
            f"model{suffix}", "models", "Interface of a model", _ref("Model"), "404",
            parameters=names,
        ),
        f"{base}/ready": _get(
            f"modelReady{suffix}", "health", "Whether a model is served", _ref("Ready"), "404",
            parameters=names,
        ),
        f"{base}/config": _get(
            f"config{suffix}", "models", "Configuration of a model", _ref("Config"), "404",
            parameters=names,
        ),
        f"{base}/stats": _get(
            f"statistics{suffix}", "models", "Counts of a model", _ref("Statistics"), "404",
            parameters=names,
        ),
        f"{base}/infer": _post(
            f"infer{suffix}", "inference", "Tensors in, tensors out",
            {"200": _inferred()}, "403", "404", parameters=names,
            body=_body({_JSON: _ref("InferRequest"), _BINARY: _ref("Bytes")}),
            headers={"Inference-Header-Content-Length": _HEAD_LENGTH},
        ),
        f"{base}/predict": _post(
            f"predict{suffix}", "inference", "JSON or an image in, named answers out",
            {"200": _json(_ref("PredictResponse"))}, "403", "404", "501", parameters=names,
            body=_body({_JSON: _ref("PredictRequest"), "image/*": _ref("Bytes")}),
        ),
    }  # fmt: skip


_HEAD_LENGTH: Final[Schema] = {
    "type": "string",
    "pattern": "^[0-9]{1,12}$",
    "description": "bytes of the JSON that binary tensors follow; 0: the body is the one input",
}

_ALWAYS: Final = ("400", "401", "408", "413", "429", "431", "500", "503")
"""Statuses that any request may get: HTTP that is none, a bound, or a server that is full."""


def _get(
    name: str,
    tag: str,
    summary: str,
    answer: Schema,
    *also: str,
    parameters: list[str] | None = None,
    kind: str = _JSON,
) -> Schema:
    responses: Schema = {"200": _json(answer, kind)}
    return {"get": _operation(name, tag, summary, responses, also, parameters or [], {})}


def _post(
    name: str,
    tag: str,
    summary: str,
    responses: Schema,
    *also: str,
    parameters: list[str] | None = None,
    headers: Mapping[str, Schema] | None = None,
    body: Schema,
) -> Schema:
    operation = _operation(name, tag, summary, responses, also, parameters or [], headers or {})
    return {"post": operation | {"requestBody": body}}


def _operation(
    name: str,
    tag: str,
    summary: str,
    responses: Schema,
    also: tuple[str, ...],
    parameters: list[str],
    headers: Mapping[str, Schema],
) -> Schema:
    refused: Schema = {
        status: {"$ref": f"#/components/responses/{status}"} for status in sorted({*_ALWAYS, *also})
    }
    operation: Schema = {
        "operationId": name,
        "tags": [tag],
        "summary": summary,
        "responses": {**responses, **refused},
    }
    listed: list[JsonValue] = [{"$ref": f"#/components/parameters/{each}"} for each in parameters]
    listed += [{"name": key, "in": "header", "schema": value} for key, value in headers.items()]
    return operation | ({"parameters": listed} if listed else {})


def _inferred() -> Schema:
    return {
        "description": "the outputs: as JSON, or as JSON that binary tensors follow",
        "headers": {
            "Inference-Header-Content-Length": {
                "description": "bytes of the JSON, where binary tensors follow",
                "schema": {"type": "string", "pattern": "^[0-9]+$"},
            }
        },
        "content": {
            _JSON: {"schema": _ref("InferResponse")},
            _BINARY: {"schema": _ref("Bytes")},
        },
    }


# ── answers that refuse ──────────────────────────────────────────────────────────────────────────

_REFUSALS: Final = {
    "400": "the request is malformed, does not fit the model, or a checker refused it",
    "401": "a bearer token is needed",
    "403": "not for this client",
    "404": "no such path, model, version or prediction here",
    "408": "the request did not arrive in time",
    "409": "it cannot be carried out as things are",
    "413": f"the body is longer than {MAX_BODY_BYTES} bytes, inflated or not",
    "429": "this client asks too often",
    "431": "the head of the request is too long",
    "500": "the model or the server failed",
    "501": "the protocol has it, this server does not",
    "503": "overloaded, too late, full, or without a model",
}
_RETRY_AFTER: Final = ("429", "503")


def _refusals() -> Schema:
    responses: Schema = {}
    for status, description in _REFUSALS.items():
        response = _json(_ref("Error")) | {"description": description}
        if status in _RETRY_AFTER:
            response["headers"] = {
                "Retry-After": {
                    "description": "seconds to wait",
                    "schema": {"type": "string", "pattern": "^[0-9]+$"},
                }
            }
        responses[status] = response
    return responses


# ── schemas ──────────────────────────────────────────────────────────────────────────────────────


def _schemas() -> Schema:
    tensor = _exactly(
        name=_STRING,
        datatype={"enum": list(_DATATYPES)},
        shape=_list({"type": "integer"}),
    )
    parameters: Schema = {"type": "object"}
    output: Schema = {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": _STRING,
            "datatype": {"enum": list(_DATATYPES)},
            "shape": _list(_COUNT),
            "data": _list({}),
            "parameters": _exactly(binary_data_size=_COUNT),
        },
        "additionalProperties": False,
    }
    return {
        "Error": _exactly(error={"type": "string", "minLength": 1}),
        "Bytes": {"description": "bytes as they are"},
        "Server": _exactly(
            name=_STRING, version=_STRING, extensions=_list({"enum": list(EXTENSIONS)})
        ),
        "Live": _exactly(live={"const": True}),
        "Ready": _exactly(ready={"const": True}),
        "Model": _exactly(
            name=_STRING,
            versions=_list(_STRING),
            platform=_STRING,
            inputs=_list(tensor),
            outputs=_list(tensor),
        ),
        "Config": {"type": "object", "required": ["name", "platform", "input", "output"]},
        "Statistics": _exactly(model_stats=_list(_statistics())),
        "Index": _list(
            _exactly(name=_STRING, version=_STRING, state={"const": "READY"}, reason=_STRING)
        ),
        "Accepted": _exactly(accepted={"const": True}),
        "Feedback": {
            "type": "object",
            "required": ["id", "label"],
            "properties": {
                "id": {"type": "string", "maxLength": MAX_ID_CHARS},
                "label": {"type": "string", "maxLength": 200},
            },
        },
        "InferRequest": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": {"type": "string", "maxLength": MAX_ID_CHARS},
                "parameters": _request_parameters(),
                "inputs": _list(
                    {
                        "type": "object",
                        "required": ["name", "shape", "datatype"],
                        "properties": {
                            "name": _STRING,
                            "shape": _list(_COUNT) | {"maxItems": 8},
                            "datatype": {"enum": list(_DATATYPES)},
                            "data": {"type": "array", "description": "flat or nested, row-major"},
                            "parameters": parameters,
                        },
                    }
                ),
                "outputs": _list(
                    {
                        "type": "object",
                        "required": ["name"],
                        "properties": {"name": _STRING, "parameters": parameters},
                    }
                ),
            },
        },
        "InferResponse": _exactly(
            model_name=_STRING, model_version=_STRING, id=_STRING, outputs=_list(output)
        ),
        "PredictRequest": {
            "type": "object",
            "properties": {
                "id": {"type": "string", "maxLength": MAX_ID_CHARS},
                "parameters": _request_parameters(),
                "inputs": {"type": "object", "description": "values by the inputs' names"},
                "instances": {"type": "array", "description": "one value or object per item"},
            },
            "oneOf": [{"required": ["inputs"]}, {"required": ["instances"]}],
            "additionalProperties": False,
        },
        "PredictResponse": _exactly(
            model_name=_STRING, model_version=_STRING, id=_STRING, predictions=_list(_OPEN)
        ),
    }


def _request_parameters() -> Schema:
    return {
        "type": "object",
        "properties": {
            "timeout": {
                "type": "integer",
                "minimum": 0,
                "description": "microseconds after which the answer is of no use; 0: none",
            },
            "binary_data_output": {"type": "boolean"},
            "trace": {"type": "boolean", "description": "every step's tensors too"},
        },
    }


def _statistics() -> Schema:
    times = _exactly(count=_COUNT, ns=_COUNT)
    return _exactly(
        name=_STRING,
        version=_STRING,
        inference_count=_COUNT,
        execution_count=_COUNT,
        inference_stats=_exactly(success=times, fail=times),
        batch_stats=_list(_exactly(batch_size=_COUNT, compute_infer=times)),
    )


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _exactly(**properties: Schema) -> Schema:
    """An object with these keys, all of them and no others."""
    return {
        "type": "object",
        "required": list(properties),
        "properties": dict(properties),
        "additionalProperties": False,
    }


def _json(schema: Schema, kind: str = _JSON) -> Schema:
    return {"description": "the answer", "content": {kind: {"schema": schema}}}


def _body(content: Mapping[str, Schema], *, required: bool = True) -> Schema:
    described: Schema = {kind: {"schema": schema} for kind, schema in content.items()}
    return {"required": required, "content": described}


def _in_path(name: str, description: str) -> Schema:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string", "minLength": 1},
    }
