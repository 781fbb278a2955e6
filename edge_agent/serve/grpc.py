"""The Open Inference Protocol v2 over gRPC: an optional extra, `skerry-agent[grpc]`.

Adapts the data plane, as `http` and `routes` do; what the two answer, and why they refuse, is the
same.  Adds what Triton's clients ask beyond the protocol: configuration, statistics, the
repository's index, and a stream of requests that is answered in order.

Rules:
    * Everything runs on the event loop that `start` is called on.
    * Loopback unless told otherwise; no TLS of its own: beyond the device, put a proxy before it.
    * Outputs travel in `raw_output_contents`, whatever form the inputs came in.
    * Who asks is settled before a message is waited for, and a message is waited for no longer than
      HTTP waits for a request.  Health reads no message at all, and has calls kept for it.
    * A message is bounded before it is read, inflated or not; so is what is in the works together.
      Buckets and bounds can be shared with HTTP, so that a client gains nothing by asking on both.

What grpcio gives no hold of: a message's bytes are counted when it is complete, not as they
arrive, so what is under way is bounded only by the number of calls times the longest message.  A
client that does not read its answer holds one call until its connection ends.  Where no token is
asked for, `MAX_CALLS` silent calls from enough connections keep others out until their time is up.

Does not load or unload models: signed updates decide what is served.  Knows no shared memory.

GrpcUnavailable, a ServeError, says that the extra is not installed.

Source: github.com/kserve/open-inference-protocol, open_inference_grpc.proto
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from edge_agent.pipeline import InputError, PipelineError, Rejected
from edge_agent.serve import grpc_messages, metadata, oip, tensors
from edge_agent.serve.access import Buckets, check_token
from edge_agent.serve.errors import (
    BadRequest,
    BodyTooLarge,
    CannotListen,
    Crowded,
    Expired,
    Forbidden,
    ModelNotServed,
    NotOffered,
    Overloaded,
    RateLimited,
    ServeError,
    Unauthorized,
)
from edge_agent.serve.http_messages import Limits

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from grpc.aio import Server, ServicerContext

    from edge_agent.serve.dataplane import DataPlane
    from edge_agent.serve.served_model import ServedModel

log = logging.getLogger("skerry.serve")

MAX_CALLS: Final = 256
"""Calls in the works, streams among them, but for health."""

MAX_CALLS_PER_CONNECTION: Final = 64
"""Further ones wait with the client until one has ended."""

MAX_STREAMS: Final = 128
"""Of the calls; a stream may stay for long."""

_CALLS_FOR_HEALTH: Final = 64
_STREAM_IDLE_S: Final = 600.0
"""A stream that brings nothing for this long is ended."""

_HANDSHAKE_MS: Final = 10_000
_LARGE_BYTES: Final = 128 * 1024
"""Typed contents beyond this are converted beside the event loop."""

_MAX_TEXT_CHARS: Final = 1000
_MAX_TEXT_BYTES: Final = 4000
"""Of an error: it travels in a header, percent-encoded, and clients bound headers at 8 KiB."""

_KEEPALIVE_MS: Final = 60_000

_Answer: TypeAlias = Callable[["Message", "ServicerContext"], "Awaitable[Message]"]
_Unary: TypeAlias = Callable[[AsyncIterator[bytes], "ServicerContext"], "Awaitable[bytes]"]


class GrpcUnavailable(ServeError):
    """The extra is not installed."""

    def __init__(self, missing: str) -> None:
        super().__init__(f"gRPC needs the extra (pip install 'skerry-agent[grpc]'): {missing}")


class _NotArrived(Expired):
    """The call was begun, its message did not come."""

    def __init__(self) -> None:
        ServeError.__init__(self, "the request did not arrive in time")


class GrpcServer:
    """Serves a data plane over gRPC.  `start` and `stop` are called on one event loop."""

    def __init__(
        self,
        plane: DataPlane,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        token: str | None = None,
        buckets: Buckets | None = None,
        debug: bool = False,
        limits: Limits | None = None,
        max_message_bytes: int = oip.MAX_BODY_BYTES,
        stream_idle_s: float = _STREAM_IDLE_S,
    ) -> None:
        """Prepare; `start` listens.

        Args:
            port: 0 takes any free one; `port` tells which.
            token: what clients must send as `authorization: Bearer TOKEN`; None asks for nothing.
                Liveness and readiness are free.
            buckets: how often one client may predict; may be shared with HTTP.  None is no bound.
            debug: step traces for everybody; else nobody gets them here.
            limits: bounds, may be shared with HTTP; None takes the defaults.
            max_message_bytes: longest request, inflated or not.
            stream_idle_s: how long a stream may bring nothing.

        Raises:
            GrpcUnavailable: grpcio or protobuf is not installed.
        """
        # Its own log, unstructured and on stderr, repeats what is raised or answered here.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        try:
            self._grpc: Any = importlib.import_module("grpc")
            self._types = grpc_messages.message_types()
        except ImportError as error:
            raise GrpcUnavailable(str(error)) from error
        self._plane = plane
        self._host = host
        self._port = port
        self._token = token
        self._buckets = buckets
        self._debug = debug
        self._limits = limits or Limits()
        self._max_message_bytes = max_message_bytes
        self._stream_idle_s = stream_idle_s
        self._calls = 0
        self._streams = 0
        self._server: Server | None = None

    @property
    def port(self) -> int:
        """The port it listens on; the one asked for before `start`."""
        return self._port

    async def start(self) -> None:
        """Listen.

        Raises:
            CannotListen: the address is taken or not ours.
        """
        server = self._grpc.aio.server(
            maximum_concurrent_rpcs=MAX_CALLS + _CALLS_FOR_HEALTH,
            options=[
                ("grpc.max_receive_message_length", self._max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # a second server on the port is an error
                ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
                ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
                ("grpc.max_connection_idle_ms", int(self._limits.idle_s * 1000)),
                ("grpc.max_concurrent_streams", MAX_CALLS_PER_CONNECTION),
                (
                    "grpc.http.overload_protection",
                    0,
                ),  # which resets what a client opens as others end
                ("grpc.max_allowed_incoming_connections", self._limits.max_connections),
            ],
        )
        handlers = self._grpc.method_handlers_generic_handler(
            grpc_messages.SERVICE, self._handlers()
        )
        server.add_generic_rpc_handlers((handlers,))
        host = f"[{self._host}]" if ":" in self._host else self._host
        try:
            self._port = server.add_insecure_port(f"{host}:{self._port}")
        except RuntimeError as error:  # which does not say more
            raise CannotListen(
                f"cannot listen on {host}:{self._port} for gRPC: "
                "the port is taken, or the address is not this machine's"
            ) from error
        await server.start()
        self._server = server
        log.info("grpc.listening host=%s port=%d", self._host, self._port)

    async def stop(self, grace_s: float = 1.0) -> None:
        """Take no more calls; those in the works have `grace_s` seconds to end."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(grace_s)

    # ── calls ────────────────────────────────────────────────────────────────────────────────────

    def _handlers(self) -> dict[str, object]:
        """A handler per method.  Messages pass as bytes, so that a broken one gets our answer.

        Unary calls are declared as streams of one message, which is the same on the line: gRPC
        would read a unary message before it asked anybody here.
        """
        free: dict[str, _Answer] = {"ServerLive": self._live, "ServerReady": self._ready}
        guarded: dict[str, _Answer] = {
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._infer,
            "ModelConfig": self._config,
            "ModelStatistics": self._statistics,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._refuse_control,
            "RepositoryModelUnload": self._refuse_control,
        }
        unary = self._grpc.stream_unary_rpc_method_handler
        handlers = {name: unary(self._health_call(answer)) for name, answer in free.items()}
        for name, answer in guarded.items():
            handlers[name] = unary(self._call(self._types[f"{name}Request"], answer))
        handlers["ModelStreamInfer"] = self._grpc.stream_stream_rpc_method_handler(self._stream)
        return handlers

    def _health_call(self, answer: _Answer) -> _Unary:
        """Their requests are empty, so none is waited for."""
        nothing = self._types["ServerLiveRequest"]()

        async def handle(_: AsyncIterator[bytes], context: ServicerContext) -> bytes:
            data: bytes = (await answer(nothing, context)).SerializeToString()
            return data

        return handle

    def _call(self, request_type: type[Message], answer: _Answer) -> _Unary:
        async def handle(_: AsyncIterator[bytes], context: ServicerContext) -> bytes:
            try:
                self._authorize(context)
                with self._counted():
                    raw = await self._read(context, self._limits.message_s)
                    if raw is None:
                        raise BadRequest("the call brought no request")
                    with self._inflight(len(raw)):
                        request = _parsed(request_type, raw)
                        del raw  # a large one is held twice otherwise
                        message = await answer(request, context)
                        data: bytes = message.SerializeToString()
                        return data
            except Exception as error:
                return await self._abort(context, error)

        return handle

    async def _stream(
        self, _: AsyncIterator[bytes], context: ServicerContext
    ) -> AsyncIterator[bytes]:
        """Answer requests in their order; one that fails is answered by its error."""
        try:
            self._authorize(context)
            with self._counted(), self._counted_stream():
                wait_s = self._limits.message_s
                while (raw := await self._read(context, wait_s)) is not None:
                    wait_s = self._stream_idle_s
                    yield await self._reply(raw, context)
                    del raw
        except ServeError as error:
            await self._abort(context, error)

    async def _reply(self, raw: bytes, context: ServicerContext) -> bytes:
        """The answer to one request of a stream."""
        reply = self._types["ModelStreamInferResponse"]()
        request: Message | None = None
        try:
            with self._inflight(len(raw)):
                request = _parsed(self._types["ModelInferRequest"], raw)
                reply.infer_response.CopyFrom(await self._infer(request, context))
        except Exception as error:
            self._plane.refusals[type(error).__name__] += 1
            reply.error_message = status_of(error)[1]
            reply.infer_response.id = "" if request is None else request.id
        reply.infer_response.parameters["triton_final_response"].bool_param = True
        data: bytes = reply.SerializeToString()
        return data

    async def _read(self, context: ServicerContext, wait_s: float) -> bytes | None:
        """The next message; None when there is none any more.

        Raises:
            _NotArrived: it does not come in `wait_s` seconds.
        """
        try:
            async with asyncio.timeout(wait_s):
                raw = await context.read()
        except TimeoutError:
            raise _NotArrived from None
        return raw if isinstance(raw, bytes) else None

    async def _abort(self, context: ServicerContext, error: Exception) -> bytes:
        self._plane.refusals[type(error).__name__] += 1
        code, text, retry_after_s = status_of(error)
        trailing: tuple[tuple[str, str], ...] = ()
        if retry_after_s is not None:  # gRPC's own word for Retry-After
            trailing = (("grpc-retry-pushback-ms", str(retry_after_s * 1000)),)
        await context.abort(getattr(self._grpc.StatusCode, code), text, trailing)
        return b""

    # ── admission ────────────────────────────────────────────────────────────────────────────────

    def _authorize(self, context: ServicerContext) -> None:
        if self._token is None:
            return
        given = dict(context.invocation_metadata() or ()).get("authorization", "")
        check_token(self._token, given if isinstance(given, bytes) else given.encode())

    def _take(self, context: ServicerContext) -> None:
        """Take one request out of the bucket of its client's address."""
        if self._buckets is not None:
            self._buckets.take(_address(context.peer()))

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a call while it lasts."""
        if self._calls >= MAX_CALLS:
            raise Crowded
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    @contextlib.contextmanager
    def _counted_stream(self) -> Iterator[None]:
        if self._streams >= MAX_STREAMS:
            raise Crowded
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    @contextlib.contextmanager
    def _inflight(self, size: int) -> Iterator[None]:
        """Count the bytes of a request while it is in the works."""
        limits = self._limits
        if limits.inflight_bytes + size > limits.max_inflight_bytes:
            raise Crowded
        limits.inflight_bytes += size
        try:
            yield
        finally:
            limits.inflight_bytes -= size

    # ── answers ──────────────────────────────────────────────────────────────────────────────────

    async def _live(self, _: Message, __: ServicerContext) -> Message:
        return self._types["ServerLiveResponse"](live=True)

    async def _ready(self, _: Message, __: ServicerContext) -> Message:
        return self._types["ServerReadyResponse"](ready=bool(self._plane.models))

    async def _model_ready(self, request: Message, _: ServicerContext) -> Message:
        try:
            self._model(request)
        except ModelNotServed:
            return self._types["ModelReadyResponse"](ready=False)
        return self._types["ModelReadyResponse"](ready=True)

    async def _server_metadata(self, _: Message, __: ServicerContext) -> Message:
        return self._filled("ServerMetadataResponse", metadata.server())

    async def _model_metadata(self, request: Message, _: ServicerContext) -> Message:
        return self._filled("ModelMetadataResponse", metadata.describe(self._model(request)))

    async def _config(self, request: Message, _: ServicerContext) -> Message:
        return self._filled(
            "ModelConfigResponse", {"config": metadata.config(self._model(request))}
        )

    async def _statistics(self, request: Message, _: ServicerContext) -> Message:
        name = self._model(request).name if request.name else None
        return self._filled("ModelStatisticsResponse", metadata.statistics(self._plane, name))

    async def _index(self, _: Message, __: ServicerContext) -> Message:
        return self._filled("RepositoryIndexResponse", {"models": metadata.index(self._plane)})

    async def _refuse_control(self, request: Message, _: ServicerContext) -> Message:
        raise metadata.refuse_control(request.model_name[:80])

    async def _infer(self, request: Message, context: ServicerContext) -> Message:
        """Answer one request.  The model is looked up first: without it no tensor is read."""
        version = request.model_version or None
        inputs = self._plane.model(request.model_name, version).manifest.inputs
        self._take(context)
        if not request.raw_input_contents and request.ByteSize() > _LARGE_BYTES:
            call = await asyncio.to_thread(grpc_messages.decode, request, inputs)
        else:
            call = grpc_messages.decode(request, inputs)
        trace = bool(call.parameters.get("trace", False))
        if trace and not self._debug:
            raise Forbidden(
                "parameter 'trace': step traces are for the administrative socket, "
                "or for everybody with 'debug = true' in agent.toml"
            )
        prediction = await self._plane.predict(
            request.model_name,
            call.tensors,
            version=version,
            prediction_id=call.id,
            timeout_s=_least(
                oip.timeout_s_of(call.parameters.get("timeout")), context.time_remaining()
            ),
            trace=trace,
            sticky=_sticky(context) if self._plane.trials else "",
        )
        response = self._types["ModelInferResponse"](
            model_name=prediction.model,
            model_version=str(prediction.version),
            id=prediction.prediction_id,
        )
        grpc_messages.fill(response, prediction.outputs, call.outputs, prediction.manifest.outputs)
        for index, (step, made) in enumerate(prediction.steps):
            named = {f"step:{index}:{step}:{name}": array for name, array in made.items()}
            grpc_messages.fill(response, named, (), ())
        return response

    def _model(self, request: Message) -> ServedModel:
        return self._plane.model(request.name, request.version or None)

    def _filled(self, name: str, values: Mapping[str, object]) -> Message:
        """A message from what HTTP answers as JSON: the fields have the same names."""
        json_format = importlib.import_module("google.protobuf.json_format")
        message: Message = json_format.ParseDict(
            values, self._types[name](), ignore_unknown_fields=True
        )
        return message


def status_of(error: Exception) -> tuple[str, str, int | None]:
    """Status code, text and seconds to wait, of an error.  The texts are those of HTTP."""
    match error:
        case BodyTooLarge():
            return "RESOURCE_EXHAUSTED", _cut(error), None
        case BadRequest() | InputError():
            return "INVALID_ARGUMENT", _cut(error), None
        case Rejected():
            return "INVALID_ARGUMENT", f"rejected: {_cut(error)}", None
        case Unauthorized():
            return "UNAUTHENTICATED", _cut(error), None
        case Forbidden():
            return "PERMISSION_DENIED", _cut(error), None
        case ModelNotServed():
            return "NOT_FOUND", _cut(error), None
        case NotOffered():
            return "UNIMPLEMENTED", _cut(error), None
        case RateLimited():
            return "RESOURCE_EXHAUSTED", _cut(error), error.retry_after_s
        case Overloaded():
            return "UNAVAILABLE", _cut(error), error.retry_after_s
        case Expired():
            return "DEADLINE_EXCEEDED", _cut(error), None
        case PipelineError() | ServeError():
            return "INTERNAL", _cut(error), None
        case _:
            log.error("request.failed", exc_info=error)
            return "INTERNAL", "internal error", None


def _cut(error: Exception) -> str:
    text = str(error)[:_MAX_TEXT_CHARS].encode(errors="replace").decode()
    while len(urllib.parse.quote(text)) > _MAX_TEXT_BYTES:
        text = text[: len(text) * 3 // 4]
    return text


def _sticky(context: ServicerContext) -> str:
    """The client's key, as HTTP has it in the header of the same name."""
    value = dict(context.invocation_metadata() or ()).get("skerry-sticky-key", "")
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _address(peer: str) -> str:
    """The client as HTTP names it: the address of "ipv4:1.2.3.4:5" or "ipv6:%5B::1%5D:5"."""
    kind, _, place = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return peer
    return urllib.parse.unquote(place).rpartition(":")[0].strip("[]")


def _parsed(message_type: type[Message], raw: bytes) -> Message:
    from google.protobuf.message import DecodeError

    try:
        return message_type.FromString(raw)
    except DecodeError as error:
        raise BadRequest(f"the request is not valid: {tensors.first_line(error)}") from None


def _least(one: float | None, other: float | None) -> float | None:
    given = [value for value in (one, other) if value is not None]
    return min(given, default=None)
