"""Other servers of the same network, each in an environment of its own.

See `bench.loads.environments` for how these come about.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from bench.loads.environments import HERE, pins_of
from bench.loads.errors import ServerFailed
from bench.loads.measure import ask, require_right
from bench.loads.networks import OUTPUT, TINY, Bundle
from bench.loads.processes import ServerProcess, free_port, started
from bench.loads.requests import HttpRequest, Kind, infer

READY_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Peer:
    """One server to compare with.

    Attributes:
        name: as in the table.
        pins: name of its file of versions in `bench/peers`, without `.txt`.
        command: what is run by the environment's interpreter; {model} and {port} are filled in.
        package: the distribution whose version is told.
        kinds: what it speaks of "json" and "binary".
        path: where it takes its own JSON; empty: the protocol's path.
        python_server: it is a model server in Python, rather than a route or a core in C++.
    """

    name: str
    pins: str
    command: tuple[str, ...]
    package: str
    kinds: tuple[Kind, ...] = ("json",)
    path: str = ""
    python_server: bool = True

    def request(self, kind: Kind) -> HttpRequest:
        """The request that it is loaded with."""
        request = infer(TINY, kind)
        if self.package == "bentoml":  # takes arguments by name, arrays as nested lists
            body = json.dumps({"x": np.round(TINY.sample().astype(float), 4).tolist()})
            return HttpRequest(self.path, request.headers, body.encode())
        return HttpRequest(self.path or request.path, request.headers, request.body)

    def versions(self) -> dict[str, str]:
        """Pinned versions of the server and of onnxruntime."""
        lines = pins_of(self.pins).splitlines()
        pinned = dict(line.split("==", 1) for line in lines if "==" in line)
        return {name: pinned[name] for name in (self.package, "onnxruntime")}


def _script(name: str, *more: str) -> tuple[str, ...]:
    return (str(HERE / f"serve_{name}.py"), "{model}", "{port}", *more)


PEERS: Final = (
    Peer("FastAPI route", "fastapi", _script("fastapi"), "fastapi", python_server=False),
    Peer("MLServer, 0 workers", "mlserver", _script("mlserver", "0"), "mlserver"),
    Peer("MLServer, 1 worker", "mlserver", _script("mlserver", "1"), "mlserver"),
    Peer("KServe", "kserve", _script("kserve"), "kserve", kinds=("json", "binary")),
    Peer("LitServe", "litserve", _script("litserve"), "litserve", path="/predict"),
    Peer(
        "BentoML", "bentoml",
        ("-m", "bentoml", "serve", "serve_bentoml:Tiny", "--working-dir", str(HERE),
         "--host", "127.0.0.1", "--port", "{port}"),
        "bentoml", path="/infer",
    ),
    Peer("Ray Serve", "ray", _script("ray"), "ray", path="/"),
    Peer(
        "Triton core", "triton", _script("triton"), "nvidia-pytriton",
        kinds=("json", "binary"), python_server=False,
    ),
)  # fmt: skip


@contextlib.contextmanager
def serving(peer: Peer, python: Path, bundle: Bundle) -> Iterator[tuple[ServerProcess, int]]:
    """Start the peer and wait until it answers rightly; the server and its port.

    Raises:
        ServerFailed: it does not start, or answers wrongly.
    """
    port = free_port()
    values = {"model": str(bundle.onnx_path), "port": str(port)}
    command = [str(python), *(part.format_map(values) for part in peer.command)]
    with tempfile.TemporaryDirectory(prefix="skerry-bench-peer-") as place:
        variables = {
            "BENCH_MODEL": str(bundle.onnx_path),
            "BENTOML_HOME": place,
            "BENTOML_DO_NOT_TRACK": "true",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": place,
            "PATH": f"{python.parent}:{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(HERE),
        }
        with started(peer.name, command, environment=variables, directory=Path(place)) as server:

            def ready() -> bool:
                try:
                    return ask(port, peer.request("json"))[0] == 200
                except OSError:
                    return False

            server.wait_until(ready, READY_S)
            for kind in peer.kinds:
                try:
                    check(peer, port, kind, bundle)
                except ServerFailed as error:
                    raise server.failed(str(error)) from error
            yield server, port


def check(peer: Peer, port: int, kind: Kind, bundle: Bundle) -> None:
    """Ask once and compare with what the agent's network answers.

    Raises:
        ServerFailed: it answers otherwise.
    """
    request = peer.request(kind)
    if peer.package != "bentoml":
        require_right(port, request, bundle.answer)
        return
    status, _, body = ask(port, request)
    if status != 200 or not np.allclose(json.loads(body), bundle.answer, atol=1e-3):
        raise ServerFailed(f"{status}: {OUTPUT} {body[:200].decode(errors='replace')}")
