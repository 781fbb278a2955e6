"""The routes of the server, and which status each error gets.

GET  /v2, /v2/health/live, /v2/health/ready
GET  /v2/models/M[/versions/V][/ready]
POST /v2/models/M[/versions/V]/infer
POST /v2/models/M/feedback           {"id": prediction id, "label": class name}
POST /v2/repository/index
GET  /metrics                        Prometheus text
GET  /status                         on the administrative socket only
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final
from urllib.parse import unquote

import msgspec
from pydantic import JsonValue

from edge_agent.pipeline import InputError, PipelineError, Rejected
from edge_agent.pipeline.errors import nearest
from edge_agent.serve import metrics, oip
from edge_agent.serve.dataplane import DataPlane, Prediction, ServedModel
from edge_agent.serve.errors import BadRequest, BodyTooLarge, ModelNotServed, Overloaded
from edge_agent.serve.http import HttpRequest, HttpResponse, Reply, error_response, json_response

log = logging.getLogger("skerry.serve")

Feedback = Callable[[str, str, str], bool]
"""(model, prediction id, label) → whether that prediction is still known.  Called in a thread."""

Status = Callable[[], Mapping[str, JsonValue]]

MAX_LABEL_CHARS: Final = 200

_TEXT: Final = b"text/plain; version=0.0.4; charset=utf-8"
_BINARY: Final = b"application/octet-stream"


class _Feedback(msgspec.Struct):
    id: str
    label: str


_FEEDBACK: Final = msgspec.json.Decoder(_Feedback)


class Routes:
    """Answers requests from a data plane.  Used on one event loop."""

    def __init__(
        self, data_plane: DataPlane, feedback: Feedback | None, status: Status | None
    ) -> None:
        self._plane = data_plane
        self._feedback = feedback
        self._status = status
        self._workers: dict[str, ThreadPoolExecutor] = {}
        self._side = ThreadPoolExecutor(1, thread_name_prefix="skerry-side")
        self._version = _agent_version()

    def handle(self, request: HttpRequest) -> Reply:
        """Answer one request; never raises."""
        try:
            return self._route(request)
        except Exception as error:
            return to_response(error)

    def close(self) -> None:
        """Stop the worker threads; what they compute now is finished."""
        for worker in (*self._workers.values(), self._side):
            worker.shutdown(wait=False, cancel_futures=True)

    def _route(self, request: HttpRequest) -> Reply:
        path = request.target.partition("?")[0]
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[:2] == ["v2", "models"] and len(parts) > 2:
            return self._model_route(request, parts[2], parts[3:])
        if parts == ["v2", "repository", "index"]:
            return _only(request, "POST") or json_response(self._index())
        answers: dict[str, Callable[[], HttpResponse]] = {
            "v2": lambda: json_response(
                {
                    "name": "skerry-agent",
                    "version": self._version,
                    "extensions": ["binary_tensor_data"],
                }
            ),
            "v2/health/live": lambda: json_response({"live": True}),
            "v2/health/ready": self._ready,
            "metrics": lambda: HttpResponse(
                200, [metrics.prometheus(self._plane.snapshots()).encode()], _TEXT
            ),
        }
        if parts == ["status"] and request.admin and self._status is not None:
            return _only(request, "GET") or self._status_in_thread(self._status)
        answer = answers.get("/".join(parts))
        if answer is None:
            return error_response(404, f"no such path: {path[:120]}")
        return _only(request, "GET") or answer()

    def _model_route(self, request: HttpRequest, name: str, rest: list[str]) -> Reply:
        version: str | None = None
        if len(rest) >= 2 and rest[0] == "versions":
            version, rest = rest[1], rest[2:]
        if rest == ["infer"]:
            return _only(request, "POST") or self._infer(request, name, version)
        if rest == ["feedback"] and version is None:
            return _only(request, "POST") or self._correct(request, name)
        if rest == [] or rest == ["ready"]:
            refusal = _only(request, "GET")
            if refusal is not None:
                return refusal
            model = self._plane.model(name, version)
            return json_response({"ready": True} if rest else oip.describe(model.manifest))
        return error_response(404, f"no such path below model {name!r}")

    def _infer(self, request: HttpRequest, name: str, version: str | None) -> Reply:
        model = self._plane.model(name, version)
        encoding = request.headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
        body = oip.inflate(request.body, encoding)
        call = oip.decode(body, _head_length(request), model.manifest.inputs)
        if model.inline(_items(call)):
            return _answer(call, self._predict(request, call, name, version))
        self._plane.admit(name)
        return self._infer_in_thread(request, call, model, version)

    async def _infer_in_thread(
        self, request: HttpRequest, call: oip.Call, model: ServedModel, version: str | None
    ) -> HttpResponse:
        name = model.name
        worker = self._workers.get(name)
        if worker is None:
            worker = ThreadPoolExecutor(1, thread_name_prefix=f"skerry-{name}")
            self._workers[name] = worker
        try:
            prediction = await asyncio.get_running_loop().run_in_executor(
                worker, self._predict, request, call, name, version
            )
            return _answer(call, prediction)
        except Exception as error:
            return to_response(error)
        finally:
            self._plane.release(name)

    def _predict(
        self, request: HttpRequest, call: oip.Call, name: str, version: str | None
    ) -> Prediction:
        return self._plane.infer(
            name,
            call.tensors,
            version=version,
            prediction_id=call.id,
            arrived_s=request.arrived_s,
        )

    def _correct(self, request: HttpRequest, name: str) -> Reply:
        model = self._plane.model(name)
        feedback = self._feedback
        if feedback is None:
            return error_response(501, "feedback is not taken here")
        try:
            given = _FEEDBACK.decode(request.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"feedback is not valid: {error}") from None
        if len(given.label) > MAX_LABEL_CHARS:
            raise BadRequest(f"label: longer than {MAX_LABEL_CHARS} characters")
        labels = model.manifest.labels
        if labels and given.label not in labels:
            raise BadRequest(f"unknown label {given.label[:80]!r}{nearest(given.label, labels)}")
        return self._correct_in_thread(feedback, name, given)

    async def _correct_in_thread(
        self, feedback: Feedback, name: str, given: _Feedback
    ) -> HttpResponse:
        """Off the event loop, for it is written to disk."""
        try:
            known = await asyncio.get_running_loop().run_in_executor(
                self._side, feedback, name, given.id, given.label
            )
        except Exception as error:
            return to_response(error)
        if not known:
            return error_response(404, f"prediction {given.id[:80]!r} is not known (any more)")
        return json_response({"accepted": True})

    async def _status_in_thread(self, status: Status) -> HttpResponse:
        """Off the event loop, for it reads what an installation holds locked for a while."""
        try:
            shown = await asyncio.get_running_loop().run_in_executor(self._side, status)
        except Exception as error:
            return to_response(error)
        return json_response(dict(shown))

    def _ready(self) -> HttpResponse:
        if self._plane.models:
            return json_response({"ready": True})
        return error_response(503, "no model is installed yet")

    def _index(self) -> list[dict[str, str]]:
        return [
            {"name": name, "version": str(model.version), "state": "READY", "reason": ""}
            for name, model in sorted(self._plane.models.items())
        ]


def to_response(error: Exception) -> HttpResponse:
    """The status and text of an error.  What is not foreseen says nothing of the inside."""
    match error:
        case BodyTooLarge():
            return error_response(413, str(error))
        case BadRequest() | InputError():
            return error_response(400, str(error))
        case Rejected():
            return error_response(400, f"rejected: {error}")
        case ModelNotServed():
            return error_response(404, str(error))
        case Overloaded():
            return error_response(503, str(error), error.retry_after_s)
        case PipelineError():
            return error_response(500, str(error))
        case _:
            log.error("request.failed", exc_info=error)
            return error_response(500, "internal error")


def _answer(call: oip.Call, prediction: Prediction) -> HttpResponse:
    answer = oip.encode(call, prediction.manifest, prediction.prediction_id, prediction.outputs)
    if answer.head_length is None:
        return HttpResponse(200, answer.parts)
    length = str(answer.head_length).encode()
    return HttpResponse(200, answer.parts, _BINARY, [(b"Inference-Header-Content-Length", length)])


def _items(call: oip.Call) -> int:
    """Items of a request that may not fit the model yet."""
    return max((array.shape[0] for array in call.tensors.values() if array.ndim), default=1)


def _head_length(request: HttpRequest) -> int | None:
    value = request.headers.get(b"inference-header-content-length")
    if value is None:
        return None
    if not value.isdigit() or len(value) > 12:
        raise BadRequest("Inference-Header-Content-Length is not a number")
    return int(value)


def _only(request: HttpRequest, method: str) -> HttpResponse | None:
    if request.method == method or (request.method == "HEAD" and method == "GET"):
        return None
    refusal = error_response(405, f"{request.method} is not allowed here; use {method}")
    refusal.headers.append((b"Allow", method.encode()))
    return refusal


def _agent_version() -> str:
    try:
        return importlib.metadata.version("skerry-agent")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
