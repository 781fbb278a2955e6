"""The floor: what this machine's Python can do at all.

    python -m bench.loads.sketch MODEL.onnx --port N    the bare server
    python -m bench.loads.sketch MODEL.onnx --session SECONDS   the bare network

The server is an asyncio.Protocol with httptools on uvloop around onnxruntime.  It routes, checks,
limits, counts and samples nothing: no server in Python with those can be cheaper.  It answers the
Open Inference Protocol, so the same load drives it.  The figures of a run can be read as ratios to
these two, whatever the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import cast

import httptools
import msgspec
import numpy as np
import onnxruntime
import orjson
import uvloop

_LENGTH = b"inference-header-content-length"
_ROUNDS = 5


class _Input(msgspec.Struct):
    shape: list[int]
    data: list[float] = []


class _Request(msgspec.Struct):
    inputs: list[_Input]


_REQUEST = msgspec.json.Decoder(_Request)


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """One thread that does not spin, as the agent opens it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Sketch(asyncio.Protocol):
    """One connection."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._name = session.get_inputs()[0].name
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._length = 0
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._length = 0
        self._body = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == _LENGTH:
            self._length = int(value)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        head = memoryview(body)[: self._length] if self._length else body
        given = _REQUEST.decode(head).inputs[0]
        if self._length:
            x = np.frombuffer(body, np.float32, offset=self._length)
        else:
            x = np.array(given.data, np.float32)
        [logits] = self._session.run(None, {self._name: x.reshape(given.shape)})
        output: dict[str, object] = {"name": "logits", "shape": logits.shape, "datatype": "FP32"}
        if not self._length:
            output["data"] = logits.ravel()
            answer = orjson.dumps({"outputs": [output]}, option=orjson.OPT_SERIALIZE_NUMPY)
            line = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer)
            self._transport.write(line + answer)
            return
        output["parameters"] = {"binary_data_size": logits.nbytes}
        answer = orjson.dumps({"outputs": [output]})
        line = (
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nInference-Header-Content-Length: %d\r\n\r\n"
            % (len(answer) + logits.nbytes, len(answer))
        )
        self._transport.write(line + answer + logits.tobytes())


def session_run_us(path: Path, seconds: float) -> float:
    """Fastest of a few means of `session.run` with one item at hand, in µs."""
    session = open_session(path)
    name = session.get_inputs()[0].name
    shape = [1 if isinstance(size, str) else size for size in session.get_inputs()[0].shape]
    x = np.zeros(shape, np.float32)
    fastest = float("inf")
    for _ in range(_ROUNDS):
        runs, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds / _ROUNDS:
            for _ in range(10):
                session.run(None, {name: x})
            runs += 10
        fastest = min(fastest, elapsed / runs)
    return fastest * 1e6


async def serve(path: Path, port: int) -> None:
    session = open_session(path)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Sketch(session), "127.0.0.1", port)
    _say({"port": server.sockets[0].getsockname()[1]})
    await server.serve_forever()


def _say(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("model", type=Path)
    what = arguments.add_mutually_exclusive_group(required=True)
    what.add_argument("--port", type=int)
    what.add_argument("--session", type=float, metavar="SECONDS")
    given = arguments.parse_args()
    if given.session is not None:
        _say({"session_run_us": session_run_us(given.model, given.session)})
    else:
        uvloop.run(serve(given.model, given.port))


if __name__ == "__main__":
    main()
