"""The routes of the server, and which status each error gets.

GET  /v2, /v2/health/live, /v2/health/ready
GET  /v2/models/M[/versions/V][/ready|/config|/stats], /v2/models/stats
POST /v2/models/M[/versions/V]/infer        tensors
POST /v2/models/M[/versions/V]/predict      JSON or an image, for the model's task
POST /v2/models/M/feedback                  {"id": prediction id, "label": class name}
POST /v2/repository/index
POST /v2/repository/models/M/{load,unload}  refused: signed updates decide
GET  /metrics                               Prometheus text
GET  /status, /openapi.json                 on the administrative socket only
POST /update/{pause,resume,install}         likewise
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, TypeAlias
from urllib.parse import unquote_to_bytes

import msgspec
from pydantic import JsonValue

from edge_agent.pipeline import InputError, PipelineError, Rejected
from edge_agent.pipeline.errors import ImagesUnavailable, ImageTooLarge, nearest
from edge_agent.serve import metadata, metrics, oip
from edge_agent.serve.access import Buckets, check_token
from edge_agent.serve.administration import COMMANDS, Command, prepared
from edge_agent.serve.aside import SideThread
from edge_agent.serve.dataplane import DataPlane
from edge_agent.serve.errors import (
    BadRequest,
    BodyTooLarge,
    Expired,
    Forbidden,
    ModelNotServed,
    NotOffered,
    Overloaded,
    RateLimited,
    Refused,
    ServeError,
    Unauthorized,
)
from edge_agent.serve.http import HttpConnection
from edge_agent.serve.http_messages import (
    HttpRequest,
    HttpResponse,
    error_response,
    json_response,
)
from edge_agent.serve.inference import Inference

log = logging.getLogger("skerry.serve")

Feedback = Callable[[str, str, str], bool]
"""(model, prediction id, label) → whether that prediction is still known.  Called in a thread."""

Status = Callable[[], Mapping[str, JsonValue]]

MAX_LABEL_CHARS: Final = 200
_MAX_KNOWN_TARGETS: Final = 256
_RETRY_AFTER_S: Final = 1

_TEXT: Final = b"text/plain; version=0.0.4; charset=utf-8"
_PREDICTING: Final = ("infer", "predict")

_Endpoint: TypeAlias = Callable[[HttpRequest, HttpConnection], None]


class _Feedback(msgspec.Struct):
    id: str
    label: str


_FEEDBACK: Final = msgspec.json.Decoder(_Feedback)


class Routes:
    """Answers requests from a data plane.  Used on one event loop."""

    def __init__(
        self,
        data_plane: DataPlane,
        *,
        feedback: Feedback | None = None,
        status: Status | None = None,
        commands: Mapping[str, Command] | None = None,
        token: str | None = None,
        buckets: Buckets | None = None,
        debug: bool = False,
        allow_origins: frozenset[str] = frozenset(),
    ) -> None:
        self._plane = data_plane
        self._feedback = feedback
        self._status = status
        self._commands = commands or {}
        self._token = token
        self._buckets = buckets
        self._allow_origins = frozenset(origin.encode() for origin in allow_origins)
        self._inference = Inference(data_plane, self.refuse, debug=debug)
        self._side = SideThread("skerry-admin")
        self._predicting: dict[bytes, _Endpoint] = {}

    def handle(self, request: HttpRequest, connection: HttpConnection) -> HttpResponse | None:
        """Answer one request, now or later; never raises."""
        try:
            if not connection.unix:
                if b"origin" in request.headers:
                    preflight = self._check_origin(request)
                    if preflight is not None:
                        return preflight
                if self._token is not None:
                    self._check_token(self._token, request)
            predict = self._predicting.get(request.target)
            if predict is None:
                return self._route(request, connection)
            if request.method != b"POST":
                return self._only(request, b"POST")
            if self._buckets is not None and not connection.admin:
                self._buckets.take(connection.client)
            predict(request, connection)
        except Exception as error:
            if isinstance(error, Overloaded) and error.hold_s:
                connection.hold_off(error.hold_s)
            return self.refuse(error)
        return None

    def count(self, kind: str) -> None:
        """Count a refusal, by the name of its error."""
        self._plane.refusals[kind] += 1

    def refuse(self, error: Exception) -> HttpResponse:
        """The response of an error, which is counted."""
        self.count(type(error).__name__)
        return to_response(error)

    def close(self) -> None:
        """Stop the side threads; what they do now is finished."""
        self._inference.close()
        self._side.close()

    def _only(self, request: HttpRequest, method: bytes) -> HttpResponse | None:
        if request.method == method or (request.method == b"HEAD" and method == b"GET"):
            return None
        self.count("MethodNotAllowed")
        used = request.method.decode("ascii", "replace")
        refusal = error_response(405, f"{used} is not allowed here; use {method.decode()}")
        refusal.headers.append((b"Allow", method))
        return refusal

    def _check_origin(self, request: HttpRequest) -> HttpResponse | None:
        """Let pages of named origins ask; any page could, for a browser takes it to loopback.

        Returns:
            The answer to a browser that asks whether it may ask, else None.

        Raises:
            Forbidden: the page is of another origin.
        """
        headers = request.headers
        if headers[b"origin"] not in self._allow_origins:
            raise Forbidden("requests of web pages are refused, but of origins that are named")
        request.allowed_origin = headers[b"origin"]
        if request.method != b"OPTIONS" or b"access-control-request-method" not in headers:
            return None
        lines = [
            (b"Access-Control-Allow-Methods", b"GET, POST"),
            (
                b"Access-Control-Allow-Headers",
                b"Authorization, Content-Encoding, Content-Type, Inference-Header-Content-Length",
            ),
            (b"Access-Control-Max-Age", b"600"),
        ]
        if b"access-control-request-private-network" in headers:
            lines.append((b"Access-Control-Allow-Private-Network", b"true"))
        return HttpResponse(200, [], _TEXT, lines)

    def _check_token(self, token: str, request: HttpRequest) -> None:
        if not request.target.startswith(b"/v2/health/"):
            check_token(token, request.headers.get(b"authorization", b""))

    def _route(self, request: HttpRequest, connection: HttpConnection) -> HttpResponse | None:
        path = _path(request.target)
        parts = [unquote_to_bytes(part).decode("utf-8", "replace") for part in path.split(b"/")]
        match parts:
            case ["v2", "models", "stats"]:
                return self._get(request, lambda: metadata.statistics(self._plane))
            case ["v2", "models", name, "versions", version, *rest]:
                return self._model_route(request, connection, name, version, rest)
            case ["v2", "models", name, *rest]:
                return self._model_route(request, connection, name, None, rest)
            case ["v2", "repository", "index"]:
                return self._only(request, b"POST") or json_response(metadata.index(self._plane))
            case ["v2", "repository", "models", name, "load" | "unload"]:
                refusal = self._only(request, b"POST")
                return refusal or self.refuse(metadata.refuse_control(name[:80]))
            case ["v2"]:
                return self._get(request, metadata.server)
            case ["v2", "health", "live"]:
                return self._get(request, lambda: {"live": True})
            case ["v2", "health", "ready"]:
                return self._only(request, b"GET") or self._ready()
            case ["metrics"]:
                return self._only(request, b"GET") or self._metrics()
            case ["openapi.json"] if connection.admin:
                from edge_agent.serve.openapi import document

                return self._get(request, document)
            case ["status"] if connection.admin and self._status is not None:
                status = self._status
                refusal = self._only(request, b"GET")
                if refusal is None:
                    self._in_thread(connection, lambda: json_response(dict(status())))
                return refusal
            case ["update", name] if connection.admin and name in COMMANDS:
                refusal = self._only(request, b"POST")
                if refusal is None:
                    command = prepared(self._commands, name, request.body)
                    self._in_thread(connection, lambda: json_response(command()))
                return refusal
            case _:
                raise ModelNotServed(f"no such path: /{path.decode('utf-8', 'replace')[:120]}")

    def _model_route(
        self,
        request: HttpRequest,
        connection: HttpConnection,
        name: str,
        version: str | None,
        rest: list[str],
    ) -> HttpResponse | None:
        match rest:
            case ["infer" | "predict" as what]:
                answer = self._inference.infer if what == "infer" else self._inference.predict
                endpoint: _Endpoint = partial(answer, name=name, version=version)
                self._plane.model(name, version)  # paths of models that exist are few
                if len(self._predicting) >= _MAX_KNOWN_TARGETS:
                    self._predicting.clear()
                self._predicting[request.target] = endpoint
                return self.handle(request, connection)
            case ["feedback"] if version is None:
                refusal = self._only(request, b"POST")
                if refusal is None:
                    self._correct(request, connection, name)
                return refusal
            case []:
                return self._get(
                    request, lambda: metadata.describe(self._plane.model(name, version))
                )
            case ["ready"]:
                return self._get(request, lambda: {"ready": bool(self._plane.model(name, version))})
            case ["config"]:
                return self._get(request, lambda: metadata.config(self._plane.model(name, version)))
            case ["stats"]:
                self._plane.model(name, version)
                return self._get(request, lambda: metadata.statistics(self._plane, name))
            case _:
                raise ModelNotServed(f"no such path below model {name[:80]!r}")

    def _get(self, request: HttpRequest, value: Callable[[], object]) -> HttpResponse:
        return self._only(request, b"GET") or json_response(value())

    def _ready(self) -> HttpResponse:
        if self._plane.models:
            return json_response({"ready": True})
        return error_response(503, "no model is installed yet", _RETRY_AFTER_S)

    def _metrics(self) -> HttpResponse:
        models = [*self._plane.snapshots(), *self._plane.replaced_snapshots()]
        text = metrics.prometheus(models, self._plane.refusals)
        return HttpResponse(200, [text.encode(errors="replace")], _TEXT)

    # ── corrections and status ───────────────────────────────────────────────────────────────────

    def _correct(self, request: HttpRequest, connection: HttpConnection, name: str) -> None:
        model = self._plane.model(name)
        feedback = self._feedback
        if feedback is None:
            raise NotOffered("feedback is not taken here")
        if self._buckets is not None and not connection.admin:
            self._buckets.take(connection.client)
        try:
            given = _FEEDBACK.decode(request.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"feedback is not valid: {error}") from None
        if len(given.id) > oip.MAX_ID_CHARS:
            raise BadRequest(f"id: longer than {oip.MAX_ID_CHARS} characters")
        if len(given.label) > MAX_LABEL_CHARS:
            raise BadRequest(f"label: longer than {MAX_LABEL_CHARS} characters")
        labels = model.manifest.labels
        if labels and given.label not in labels:
            raise BadRequest(f"unknown label {given.label[:80]!r}{nearest(given.label, labels)}")

        def correct() -> HttpResponse:
            if feedback(name, given.id, given.label):
                return json_response({"accepted": True})
            raise ModelNotServed(f"prediction {given.id[:80]!r} is not known (any more)")

        self._in_thread(connection, correct)

    def _in_thread(self, connection: HttpConnection, work: Callable[[], HttpResponse]) -> None:
        """Answer with what `work` makes, off the event loop: it reads or writes the disk."""

        def failed(error: Exception) -> None:
            connection.answer(self.refuse(error))

        self._side.run(connection, work, connection.answer, failed, lasting=True)


def to_response(error: Exception) -> HttpResponse:
    """The status and text of an error.  What is not foreseen says nothing of the inside."""
    match error:
        case BodyTooLarge() | ImageTooLarge():
            return error_response(413, str(error))
        case NotOffered() | ImagesUnavailable():
            return error_response(501, str(error))
        case BadRequest() | InputError():
            return error_response(400, str(error))
        case Rejected():
            return error_response(400, f"rejected: {error}")
        case Unauthorized():
            refusal = error_response(401, str(error))
            refusal.headers.append((b"WWW-Authenticate", b"Bearer"))
            return refusal
        case Forbidden():
            return error_response(403, str(error))
        case ModelNotServed():
            return error_response(404, str(error))
        case Refused():
            return error_response(409, str(error))
        case RateLimited():
            return error_response(429, str(error), error.retry_after_s)
        case Overloaded():
            return error_response(503, str(error), error.retry_after_s)
        case Expired():
            return error_response(503, str(error), _RETRY_AFTER_S)
        case PipelineError() | ServeError():
            return error_response(500, str(error))
        case _:
            log.error("request.failed", exc_info=error)
            return error_response(500, "internal error")


def _path(target: bytes) -> bytes:
    """The path of a request target, absolute form too, without slashes around it."""
    path = target.partition(b"?")[0]
    if path[:7].lower() == b"http://":
        path = path[7:].partition(b"/")[2]
    return path.strip(b"/")
