"""The agent's gRPC server with its models, and Triton's client for it."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from edge_agent.serve import DataPlane, grpc_messages
from edge_agent.serve.grpc import GrpcServer
from tests.serve.triton_bundles import Loop, echo_name, served_plane


@dataclass
class Serving:
    plane: DataPlane
    loop: Loop
    server: GrpcServer
    client: triton.InferenceServerClient

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    @contextmanager
    def another(self, **settings: Any) -> Iterator[triton.InferenceServerClient]:
        """The client of a further server of the same models, with settings of its own."""
        server = GrpcServer(self.plane, **settings)
        self.loop.call(server.start())
        try:
            with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
                yield client
        finally:
            self.loop.call(server.stop())


@contextmanager
def serving_grpc(directory: Path) -> Iterator[Serving]:
    plane = served_plane(directory)
    with Loop.running() as loop:
        server = GrpcServer(plane)
        loop.call(server.start())
        with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            yield Serving(plane, loop, server, client)
        loop.call(server.stop())
        plane.close()


def tensor(name: str, array: NDArray[Any], datatype: str) -> triton.InferInput:
    item = triton.InferInput(name, list(array.shape), datatype)
    item.set_data_from_numpy(array)
    return item


def echo_input(value: float = 1.0, rows: int = 1) -> list[triton.InferInput]:
    return [tensor("x", np.full((rows, 3), value, np.float32), "FP32")]


def pair_inputs(rows: int = 2) -> list[triton.InferInput]:
    numbers = np.arange(rows * 2).reshape(rows, 2)
    return [
        tensor("a", numbers.astype(np.float32) / 2, "FP32"),
        tensor("b", numbers.astype(np.int64), "INT64"),
    ]


def wanted(*names: str) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name) for name in names]


def refusal(call: Callable[[], object]) -> tuple[str, str]:
    """Status and text of the error that `call` ends with."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    text = caught.value.message()
    assert text and "\n" not in text and "Traceback" not in text
    return caught.value.status().removeprefix("StatusCode."), text


def raw_infer(serving: Serving, request: Any) -> Any:
    """What the client library never sends: a request as it stands."""
    with grpc.insecure_channel(serving.address) as channel:
        call = channel.unary_unary(
            f"/{grpc_messages.SERVICE}/ModelInfer",
            request_serializer=lambda message: (
                message if isinstance(message, bytes) else message.SerializeToString()
            ),
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        return call(request, timeout=10)


def raw_refusal(serving: Serving, request: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        raw_infer(serving, request)
    return caught.value.code().name, caught.value.details()


def typed_request(datatype: str, array: NDArray[Any]) -> Any:
    """A request whose values stand in the typed contents."""
    request = service_pb2.ModelInferRequest(model_name=echo_name(datatype))
    item = request.inputs.add(name="x", datatype=datatype, shape=array.shape)
    fields = {
        "BOOL": "bool_contents", "INT64": "int64_contents", "UINT64": "uint64_contents",
        "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
    }  # fmt: skip
    field = fields.get(datatype, "uint_contents" if datatype[0] == "U" else "int_contents")
    getattr(item.contents, field).extend(array.ravel().tolist())
    return request


def busy(serving: Serving, seconds: float) -> queue.Queue[Any]:
    """Keep the slow model at work; its answer comes through the queue."""
    done: queue.Queue[Any] = queue.Queue()
    serving.client.async_infer(
        "slow", echo_input(seconds), lambda result, error: done.put(error or result)
    )
    deadline = time.monotonic() + 5
    lane = None
    while lane is None or not lane.busy:
        assert time.monotonic() < deadline
        lane = serving.plane.models["slow"].lane
        time.sleep(0.01)
    return done
