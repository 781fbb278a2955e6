"""Coverage-guided fuzzing of the HTTP connection and of the tensor decoding.

    python tests/serve/fuzz_http_atheris.py -runs=20000 [-seed=1] [CORPUS_DIRECTORY]

The first byte of an input chooses what the rest is: a stream of HTTP to the connection alone, a
stream of HTTP to the whole server with a model, or the body of an inference request.  A run ends
at the first input that raises, hangs, or is answered by what the server must not answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["edge_agent.serve"]):
    from edge_agent.serve import DataPlane, ServedModel, oip
    from edge_agent.serve.errors import BadRequest
    from edge_agent.serve.routes import Routes
    from tests.serve.in_memory import converse, cut, echo

from tests.runtime.networks import IMAGE, write_bundle
from tests.serve.clients import INFER, json_body, post, received

KNOWN = {200, 400, 404, 405, 408, 413, 415, 431, 501, 503}


def seeds() -> list[bytes]:
    request = post(json_body())
    return [
        b"\x00\x05" + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2,
        b"\x00\x05POST /later HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"\x01\x30" + request,
        b"\x01\x30" + f"GET {INFER} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".encode(),
        b"\x02\x00" + json_body(),
        b'\x02\x7f{"inputs":[{"name":"image","shape":[1,1],"datatype":"FP32",'
        b'"parameters":{"binary_data_size":4}}],"outputs":[{"name":"label"}]}\0\0\0\0',
    ]


class Target:
    """What is fuzzed, made once."""

    def __init__(self, directory: Path) -> None:
        write_bundle(directory / "slot", cost_us=50)
        self._loop = asyncio.new_event_loop()
        self._plane = DataPlane()
        self._plane.install("digits", ServedModel.load(directory / "slot"))
        self._routes = Routes(self._plane)

    def __call__(self, data: bytes) -> None:
        if len(data) < 2:
            return
        kind, second, rest = data[0] % 3, data[1], data[2:]
        if kind == 2:
            self._decode(rest, second)
        else:
            self._converse(rest, second, self._routes.handle if kind else echo)

    def _converse(self, data: bytes, step: int, handler: Any) -> None:
        if b"HEAD" in data:  # answered by the length of a body that does not follow
            return
        places = range(0, len(data), step or len(data) + 1)
        for answer in received(converse(self._loop, cut(data, places), handler)):
            assert answer.status in KNOWN, answer
            if answer.status != 200:
                assert answer.error

    def _decode(self, body: bytes, head_length: int) -> None:
        length = head_length * 2
        for attempt in (
            lambda: oip.decode(body, length or None),
            lambda: oip.decode_raw(body, (IMAGE,)),
            lambda: self._read(oip.plan(body[:length], len(body)), body),
        ):
            try:
                attempt()
            except BadRequest as error:
                assert "\n" not in str(error)
                json.dumps(str(error)).encode()

    def _read(self, plan: oip.Plan | None, body: bytes) -> None:
        if plan is not None:
            plan.read(body)


def fuzz(directory: Path) -> None:
    """Never returns: libFuzzer ends the process."""
    corpus = directory / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds()):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([*sys.argv, str(corpus)], Target(directory))
    atheris.Fuzz()


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        child = os.fork()
        if child == 0:
            fuzz(Path(directory))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
