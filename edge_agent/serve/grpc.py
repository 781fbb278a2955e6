"""The Open Inference Protocol v2 over gRPC: an optional extra, `skerry-agent[grpc]`.

Adapts the data plane, as `http` and `routes` do; what the two answer, and why they refuse, is the
same.  Adds what Triton's clients ask beyond the protocol: configuration, statistics, the
repository's index, and a stream of requests that is answered in order.

Rules:
    * Everything runs on the event loop that `start` is called on.
    * Loopback unless told otherwise; no TLS of its own: beyond the device, put a proxy before it.
    * Outputs travel in `raw_output_contents`, whatever form the inputs came in.
    * A message is bounded before it is read, inflated or not; so is what is in the works together.

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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from edge_agent.pipeline import InputError, PipelineError, Rejected
from edge_agent.serve import grpc_messages, metadata, oip, tensors
from edge_agent.serve.access import Buckets, RateLimit, check_token
from edge_agent.serve.errors import (
    BadRequest,
    BodyTooLarge,
    CannotListen,
    Expired,
    Forbidden,
    ModelNotServed,
    NotOffered,
    Overloaded,
    RateLimited,
    ServeError,
    Unauthorized,
)

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from grpc.aio import Server, ServicerContext

    from edge_agent.serve.dataplane import DataPlane, ServedModel

log = logging.getLogger("skerry.serve")

MAX_CALLS: Final = 256
"""Calls in the works, streams among them; gRPC itself refuses more."""

MAX_INFLIGHT_BYTES: Final = 64 * 1024 * 1024

_LARGE_BYTES: Final = 128 * 1024
"""Typed contents beyond this are converted beside the event loop."""

_MAX_TEXT_CHARS: Final = 1000
"""Of an error: it travels in a header, which clients bound at 8 KiB."""

_KEEPALIVE_MS: Final = 60_000

_Answer: TypeAlias = Callable[["Message", "ServicerContext"], "Awaitable[Message]"]


class GrpcUnavailable(ServeError):
    """The extra is not installed."""

    def __init__(self, missing: str) -> None:
        super().__init__(f"gRPC needs the extra (pip install 'skerry-agent[grpc]'): {missing}")


class _Crowded(Overloaded):
    """The requests in the works hold as many bytes as they may."""

    def __init__(self) -> None:
        ServeError.__init__(self, "too much is in the works for other requests")
        self.retry_after_s = 1


class GrpcServer:
    """Serves a data plane over gRPC.  `start` and `stop` are called on one event loop."""

    def __init__(
        self,
        plane: DataPlane,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        token: str | None = None,
        rate: RateLimit | None = None,
        max_message_bytes: int = oip.MAX_BODY_BYTES,
        max_inflight_bytes: int = MAX_INFLIGHT_BYTES,
    ) -> None:
        """Prepare; `start` listens.

        Args:
            port: 0 takes any free one; `port` tells which.
            token: what clients must send as `authorization: Bearer TOKEN`; None asks for nothing.
                Liveness and readiness are free.
            rate: bound per client address; None is none.
            max_message_bytes: longest request, inflated or not.
            max_inflight_bytes: of all requests in the works together.

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
        self._buckets = None if rate is None else Buckets(rate)
        self._max_message_bytes = max_message_bytes
        self._max_inflight_bytes = max_inflight_bytes
        self._inflight_bytes = 0
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
            maximum_concurrent_rpcs=MAX_CALLS,
            options=[
                ("grpc.max_receive_message_length", self._max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # a second server on the port is an error
                ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
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
        """A handler per method.  Messages pass as bytes, so that a broken one gets our answer."""
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
        unary = self._grpc.unary_unary_rpc_method_handler
        handlers = {name: unary(self._call(name, answer)) for name, answer in free.items()}
        for name, answer in guarded.items():
            handlers[name] = unary(self._call(name, answer, guarded=True))
        handlers["ModelStreamInfer"] = self._grpc.stream_stream_rpc_method_handler(self._stream)
        return handlers

    def _call(
        self, name: str, answer: _Answer, *, guarded: bool = False
    ) -> Callable[[bytes, ServicerContext], Awaitable[bytes]]:
        request_type = self._types[f"{name}Request"]

        async def handle(raw: bytes, context: ServicerContext) -> bytes:
            try:
                if guarded:
                    self._authorize(context)
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
        self, requests: AsyncIterator[bytes], context: ServicerContext
    ) -> AsyncIterator[bytes]:
        """Answer requests in their order; one that fails is answered by its error."""
        try:
            self._authorize(context)
        except ServeError as error:
            await self._abort(context, error)
        async for raw in requests:
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
            yield reply.SerializeToString()

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
            self._buckets.take(context.peer().rpartition(":")[0])

    @contextlib.contextmanager
    def _inflight(self, size: int) -> Iterator[None]:
        """Count the bytes of a request while it is in the works."""
        if self._inflight_bytes + size > self._max_inflight_bytes:
            raise _Crowded
        self._inflight_bytes += size
        try:
            yield
        finally:
            self._inflight_bytes -= size

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
        if call.parameters.get("trace"):
            raise Forbidden("parameter 'trace': step traces are for the administrative socket")
        prediction = await self._plane.predict(
            request.model_name,
            call.tensors,
            version=version,
            prediction_id=call.id,
            timeout_s=_least(
                oip.timeout_s_of(call.parameters.get("timeout")), context.time_remaining()
            ),
        )
        response = self._types["ModelInferResponse"](
            model_name=prediction.model,
            model_version=str(prediction.version),
            id=prediction.prediction_id,
        )
        grpc_messages.fill(response, prediction.outputs, call.outputs, prediction.manifest.outputs)
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
    return str(error)[:_MAX_TEXT_CHARS]


def _parsed(message_type: type[Message], raw: bytes) -> Message:
    from google.protobuf.message import DecodeError

    try:
        return message_type.FromString(raw)
    except DecodeError as error:
        raise BadRequest(f"the request is not valid: {tensors.first_line(error)}") from None


def _least(one: float | None, other: float | None) -> float | None:
    given = [value for value in (one, other) if value is not None]
    return min(given, default=None)
