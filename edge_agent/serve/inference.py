"""The routes that predict: tensors (`infer`), and JSON or an image for a task (`predict`).

Both hand valid tensors to the data plane, and write the answer when it is there.  What takes longer
than a turn of the event loop may is done in a thread beside it: inflating, decoding images and long
JSON, compressing.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, TypeVar

from pydantic import JsonValue

from edge_agent.pipeline import InputError, Request
from edge_agent.pipeline.image_file import decode_image
from edge_agent.pipeline.interface import validate
from edge_agent.pipeline.task import answer as answer_items
from edge_agent.pipeline.task import decode_request
from edge_agent.runtime import Tensors
from edge_agent.serve import oip
from edge_agent.serve.aside import SideThread
from edge_agent.serve.dataplane import DataPlane
from edge_agent.serve.errors import BadRequest, Crowded, Forbidden, NotOffered
from edge_agent.serve.http import HttpConnection
from edge_agent.serve.http_messages import HttpRequest, HttpResponse, json_response
from edge_agent.serve.json_plans import Cut, JsonForm, JsonPlan
from edge_agent.serve.prediction import Prediction, Reply
from edge_agent.serve.served_model import ServedModel
from edge_agent.wire.manifest import Manifest, TensorSpec

_BINARY: Final = b"application/octet-stream"
_LEAST_COMPRESSED_BYTES: Final = 1024
_LARGE_BYTES: Final = 64 * 1024
"""From here on compressing, or decoding JSON, takes longer than a hop to a thread."""
_MOST_INFLATED_ON_LOOP: Final = 2 * 1024
"""Bytes before inflating; they become a thousand times as many at most."""

T = TypeVar("T")


class Refuse(Protocol):
    """Makes the response of an error, and counts it."""

    def __call__(self, error: Exception) -> HttpResponse: ...


@dataclass(slots=True)
class _Known:
    """A plan that fits the model's interface, its batch size, and the form of its answers."""

    plan: oip.Plan
    items: int
    form: oip.Form | None = None
    beside: tuple[Manifest, _Known] | None = None

    def answered_by(self, manifest: Manifest) -> _Known:
        """The same for the version that is tried beside this one: its answers have a form of
        their own."""
        if self.beside is None or self.beside[0] is not manifest:
            self.beside = manifest, _Known(self.plan, self.items)
        return self.beside[1]


@dataclass(slots=True)
class _KnownJson:
    """The same for a request whose numbers stand in the JSON."""

    plan: JsonPlan
    items: int
    form: JsonForm | None = None
    beside: tuple[Manifest, _KnownJson] | None = None

    def answered_by(self, manifest: Manifest) -> _KnownJson:
        """As `_Known.answered_by`."""
        if self.beside is None or self.beside[0] is not manifest:
            self.beside = manifest, _KnownJson(self.plan, self.items)
        return self.beside[1]


@dataclass(frozen=True, slots=True)
class _Read:
    """What the JSON of a tensor request said.  Made in a thread if the JSON is long.

    Attributes:
        known: the plan that read it; None where none did.
        plan: for others of the same text, if it was not known before.
    """

    tensors: Tensors
    ask: oip.Ask
    known: _KnownJson | None = None
    plan: JsonPlan | None = None
    around: bytes = b""


class Inference:
    """Answers predictions.  Used on one event loop."""

    def __init__(self, plane: DataPlane, refuse: Refuse, *, debug: bool) -> None:
        """Prepare.

        Args:
            debug: step traces are for everybody, not for the administrative socket alone.
        """
        self._plane = plane
        self._refuse = refuse
        self._debug = debug
        self._side = SideThread("skerry-side")
        self._images = SideThread("skerry-image")  # decoding one may take long

    def close(self) -> None:
        self._side.close()
        self._images.close()

    # ── tensors ──────────────────────────────────────────────────────────────────────────────────

    def infer(
        self, request: HttpRequest, connection: HttpConnection, name: str, version: str | None
    ) -> None:
        """`POST /v2/models/M[/versions/V]/infer`.

        Raises:
            ServeError, InputError: the request is at fault, or cannot be taken now.
        """
        model = self._plane.model(name, version)
        if b"content-encoding" in request.headers:

            def then(body: bytes) -> None:
                # it took a while: the model of before may be closed
                self._infer(request, connection, self._plane.model(name, version), version, body)

            self._inflated(request, connection, then)
        else:
            self._infer(request, connection, model, version, request.body)

    def _infer(
        self,
        request: HttpRequest,
        connection: HttpConnection,
        model: ServedModel,
        version: str | None,
        body: bytes,
    ) -> None:
        head_length = _head_length(request)
        if head_length == 0:
            tensors, ask = oip.decode_raw(body, model.manifest.inputs)
            items = model.pipeline.validate(tensors)
            self._submit_tensors(request, connection, model, tensors, ask, items)
            return
        if head_length is not None:
            head = body[: oip.check_head_length(head_length, body)]
            known = model.memo.get(head)
            if known is None and head_length < _LARGE_BYTES:
                known = self._understand(model, head, body)
            if isinstance(known, _Known):
                ask, tensors = known.plan.ask, known.plan.read(body)
                self._submit_tensors(request, connection, model, tensors, ask, known.items, known)
                return
        self._infer_json(request, connection, model, version, body, head_length)

    def _submit_tensors(
        self,
        request: HttpRequest,
        connection: HttpConnection,
        model: ServedModel,
        tensors: Tensors,
        ask: oip.Ask,
        items: int,
        known: _Known | _KnownJson | None = None,
    ) -> None:
        prediction = Prediction(
            ask.id or self._plane.new_id(),
            model.manifest,
            tensors,
            items,
            request.arrived_s,
            _Reply(self, request, connection, ask, known),
        )
        self._submit(model, prediction, connection, ask)

    def _infer_json(
        self,
        request: HttpRequest,
        connection: HttpConnection,
        model: ServedModel,
        version: str | None,
        body: bytes,
        head_length: int | None,
    ) -> None:
        """Answer a request of which an input stands in the JSON."""
        cut = Cut.of(body) if head_length is None else None
        met = None if cut is None else model.memo.get(cut.around)
        known = met if isinstance(met, _KnownJson) else None
        work = partial(_read_json, body, head_length, cut, known, model.manifest.inputs)

        def submit(read: _Read, current: ServedModel) -> None:
            ask, tensors, known = read.ask, read.tensors, read.known
            if known is not None and current is model:
                items = known.items
            else:
                items, known = current.pipeline.validate(tensors), None
                if read.plan is not None:
                    known = _KnownJson(read.plan, items)
                    self._remember(current, read.around, known)
            self._submit_tensors(request, connection, current, tensors, ask, items, known)

        if (head_length or len(body)) < _LARGE_BYTES:
            submit(work(), model)
            return

        def go_on(read: _Read) -> None:
            submit(read, self._plane.model(model.name, version))  # decoding took a while

        self._aside(self._side, connection, work, go_on)

    def _remember(self, model: ServedModel, text: bytes, known: object) -> None:
        if len(model.memo) >= oip.MAX_KEPT_PLANS:
            model.memo.clear()
        model.memo[text] = known

    def _understand(self, model: ServedModel, head: bytes, body: bytes) -> _Known | None:
        """The plan of a JSON that was not met before; remembered where others may have the same."""
        plan = oip.plan(head, len(body), model.manifest.inputs)
        if plan is None:
            return None
        known = _Known(plan, model.pipeline.validate(plan.read(body)))
        if not plan.ask.id and len(head) <= oip.MAX_KEPT_HEAD_BYTES:
            self._remember(model, head, known)
        return known

    def _submit(
        self, model: ServedModel, prediction: Prediction, connection: HttpConnection, ask: oip.Ask
    ) -> None:
        if ask.timeout_s is not None:
            prediction.deadline_s = prediction.arrived_s + ask.timeout_s
        if ask.trace:
            if not (connection.admin or self._debug):
                raise Forbidden(
                    "parameter 'trace': step traces are for the administrative socket, "
                    "or for everybody with 'debug = true' in agent.toml"
                )
            prediction.trace = True
        connection.pending = prediction
        self._plane.submit(model, prediction)

    def reply(
        self,
        request: HttpRequest,
        connection: HttpConnection,
        ask: oip.Ask,
        known: _Known | _KnownJson | None,
        prediction: Prediction,
    ) -> None:
        """Answer the client of a prediction that is done."""
        if prediction.error is not None:
            connection.answer(self._refuse(prediction.error))
            return
        if known is not None and known.form is not None and not request.accepts_encoding:
            parts = known.form.fill(prediction)
            if parts is not None:
                if isinstance(known.form, JsonForm):
                    connection.answer(HttpResponse(200, parts))
                else:
                    connection.answer_ok(parts, known.form.length, known.form.head_length)
                return
        try:
            answer = oip.encode(ask, prediction)
        except Exception as error:  # silence would leave the client waiting
            connection.answer(self._refuse(error))
            return
        if isinstance(known, _Known):
            known.form = oip.Form.of(answer, prediction, ask)
        elif known is not None:
            known.form = JsonForm.of(prediction, ask)
        headers: list[tuple[bytes, bytes]] = []
        if answer.head_length is not None:
            headers.append((b"Inference-Header-Content-Length", b"%d" % answer.head_length))
        kind = b"application/json" if answer.head_length is None else _BINARY
        self._send(request, connection, HttpResponse(200, answer.parts, kind, headers))

    # ── tasks ────────────────────────────────────────────────────────────────────────────────────

    def predict(
        self, request: HttpRequest, connection: HttpConnection, name: str, version: str | None
    ) -> None:
        """`POST /v2/models/M[/versions/V]/predict`.

        Raises:
            ServeError, InputError: the request is at fault, or cannot be taken now.
        """
        then = partial(self._predict, request, connection, name, version)
        if b"content-encoding" in request.headers:
            self._inflated(request, connection, then)
        else:
            then(request.body)

    def _predict(
        self,
        request: HttpRequest,
        connection: HttpConnection,
        name: str,
        version: str | None,
        body: bytes,
    ) -> None:
        model = self._plane.model(name, version)
        if not _is_image(request, body):

            def ask(asked: Request) -> None:
                if len(asked.id) > oip.MAX_ID_CHARS:
                    raise BadRequest(f"id: longer than {oip.MAX_ID_CHARS} characters")
                timeout_s = oip.timeout_s_of(asked.parameters.get("timeout"))
                current = self._plane.model(name, version)
                wanted = oip.Ask(asked.id, timeout_s=timeout_s)
                self._submit_task(request, connection, current, asked.tensors, wanted)

            decode = partial(decode_request, body, model.manifest.inputs)
            if len(body) < _LARGE_BYTES:
                ask(decode())
            else:
                self._aside(self._side, connection, decode, ask)
            return
        image = model.manifest.image
        if image is None:
            raise InputError(f"model {model.name!r} takes no images; send JSON")
        spec = next((spec for spec in model.manifest.inputs if spec.name == image.input), None)
        if spec is None or len(model.manifest.inputs) > 1:
            raise NotOffered(f"model {model.name!r} takes images beside other inputs; send tensors")

        def submit(tensors: Tensors) -> None:
            current = self._plane.model(name, version)  # decoding took a while
            self._submit_task(request, connection, current, tensors, oip.Ask())

        work = partial(decode_image, body, image, spec)
        self._aside(self._images, connection, work, submit)

    def _submit_task(
        self,
        request: HttpRequest,
        connection: HttpConnection,
        model: ServedModel,
        tensors: Tensors,
        ask: oip.Ask,
    ) -> None:
        prediction = Prediction(
            ask.id or self._plane.new_id(),
            model.manifest,
            tensors,
            model.pipeline.validate(tensors),
            request.arrived_s,
            _TaskReply(self, request, connection),
        )
        self._submit(model, prediction, connection, ask)

    def reply_task(
        self, request: HttpRequest, connection: HttpConnection, prediction: Prediction
    ) -> None:
        """Answer the client of a task that is done."""
        try:
            if prediction.error is not None:
                raise prediction.error
            items: list[JsonValue] = list(answer_items(prediction.outputs, prediction.manifest))
            response = json_response(
                {
                    "model_name": prediction.model,
                    "model_version": str(prediction.version),
                    "id": prediction.prediction_id,
                    "predictions": items,
                }
            )
        except Exception as error:
            connection.answer(self._refuse(error))
            return
        self._send(request, connection, response)

    # ── bodies ───────────────────────────────────────────────────────────────────────────────────

    def _inflated(
        self, request: HttpRequest, connection: HttpConnection, then: Callable[[bytes], None]
    ) -> None:
        """Undo the body's encoding, then go on."""
        encoding = request.headers[b"content-encoding"].decode("latin-1").strip().lower()

        def go_on(body: bytes) -> None:
            if body is not request.body:
                connection.hold(len(body))
            then(body)

        work = partial(oip.inflate, request.body, encoding)
        if len(request.body) < _MOST_INFLATED_ON_LOOP:
            go_on(work())
        else:
            self._aside(self._side, connection, work, go_on)

    def _send(
        self, request: HttpRequest, connection: HttpConnection, response: HttpResponse
    ) -> None:
        """Answer, compressed if the client likes and it pays."""
        coding = request.accepts_encoding
        size = sum(map(len, response.parts))
        if not coding or size < _LEAST_COMPRESSED_BYTES:
            connection.answer(response)
            return

        def finish(body: bytes) -> None:
            response.parts = [body]
            response.headers.append((b"Content-Encoding", coding.encode()))
            connection.answer(response)

        work = partial(_compressed, response.parts, coding)
        if size < _LARGE_BYTES:
            finish(work())
            return
        try:
            self._aside(self._side, connection, work, finish)
        except Crowded:
            connection.answer(response)  # as it is

    def _aside(
        self,
        side: SideThread,
        connection: HttpConnection,
        work: Callable[[], T],
        then: Callable[[T], None],
    ) -> None:
        """Do `work` in a thread, then go on with its result on the event loop.

        Raises:
            Crowded: too much waits for the thread.
        """

        def failed(error: Exception) -> None:
            connection.answer(self._refuse(error))

        side.run(connection, work, then, failed)


class _Reply(Reply):
    """The `done` of one prediction over the raw route."""

    __slots__ = ("_ask", "_connection", "_inference", "_known", "_request")

    def __init__(
        self,
        inference: Inference,
        request: HttpRequest,
        connection: HttpConnection,
        ask: oip.Ask,
        known: _Known | _KnownJson | None = None,
    ) -> None:
        self._inference = inference
        self._request = request
        self._connection = connection
        self._ask = ask
        self._known = known

    def __call__(self, prediction: Prediction) -> None:
        self._inference.reply(self._request, self._connection, self._ask, self._known, prediction)

    @property
    def sticky(self) -> str:
        return _sticky(self._request)

    def redirect(self, manifest: Manifest) -> None:
        if self._known is not None:
            self._known = self._known.answered_by(manifest)


class _TaskReply(Reply):
    """The `done` of one prediction over the route for tasks."""

    __slots__ = ("_connection", "_inference", "_request")

    def __init__(
        self, inference: Inference, request: HttpRequest, connection: HttpConnection
    ) -> None:
        self._inference = inference
        self._request = request
        self._connection = connection

    def __call__(self, prediction: Prediction) -> None:
        self._inference.reply_task(self._request, self._connection, prediction)

    @property
    def sticky(self) -> str:
        return _sticky(self._request)

    def redirect(self, manifest: Manifest) -> None:
        """Nothing is kept here of the version."""


def _sticky(request: HttpRequest) -> str:
    return request.headers.get(b"skerry-sticky-key", b"").decode("latin-1")


def _read_json(
    body: bytes,
    head_length: int | None,
    cut: Cut | None,
    known: _KnownJson | None,
    inputs: Sequence[TensorSpec],
) -> _Read:
    """The tensors of a body with numbers in its JSON: by a plan that is known, or as a whole."""
    if cut is not None and known is not None:
        tensors = known.plan.read(cut.data)
        if tensors is not None:
            return _Read(tensors, known.plan.ask, known)
    tensors, ask = oip.decode(body, head_length, inputs)
    if cut is None:
        return _Read(tensors, ask)
    validate(tensors, inputs)
    plan = JsonPlan.of(tensors, ask, inputs[0].datatype, cut)
    return _Read(tensors, ask, None, plan, cut.around)


def _compressed(parts: list[bytes], coding: str) -> bytes:
    engine = zlib.compressobj(1, zlib.DEFLATED, 31 if coding == "gzip" else 15)
    return b"".join([*(engine.compress(part) for part in parts), engine.flush()])


def _is_image(request: HttpRequest, body: bytes) -> bool:
    """By the content type; a client that names none sends JSON if it begins like JSON."""
    kind = request.headers.get(b"content-type", b"").lower()
    if kind.startswith(b"image/"):
        return True
    return b"json" not in kind and body.lstrip()[:1] not in (b"{", b"[", b"")


def _head_length(request: HttpRequest) -> int | None:
    value = request.headers.get(b"inference-header-content-length")
    if value is None:
        return None
    if not value.isdigit() or len(value) > 12:
        raise BadRequest("Inference-Header-Content-Length is not a number")
    return int(value)
