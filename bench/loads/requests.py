"""The requests that all load generators send: Open Inference Protocol v2, as bytes.

One fixed request a run: it is made once, so a load generator spends nothing on it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from bench.loads.errors import ServerFailed
from bench.loads.networks import INPUT, OUTPUT, Floats, Network

Kind = Literal["binary", "json"]
KINDS: Final[tuple[Kind, ...]] = ("binary", "json")

_HEAD_LENGTH: Final = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One POST: its path, its headers beside Host and Content-Length, its body."""

    path: str
    headers: dict[str, str]
    body: bytes

    def encode(self, host: str = "127.0.0.1") -> bytes:
        """The request as it goes over a connection that is kept."""
        lines = [f"POST {self.path} HTTP/1.1", f"Host: {host}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += [f"Content-Length: {len(self.body)}", "", ""]
        return "\r\n".join(lines).encode() + self.body

    def lua(self, path: Path) -> Path:
        """Write a wrk script that sends this request; wrk formats it once and runs no Lua later."""
        body = "".join(_lua_byte(byte) for byte in self.body)
        lines = ['wrk.method = "POST"', f'wrk.body = "{body}"']
        lines += [f'wrk.headers["{name}"] = "{value}"' for name, value in self.headers.items()]
        path.write_text("\n".join(lines) + "\n", encoding="ascii")
        return path


def infer(network: Network, kind: Kind, *, timeout_us: int | None = None) -> HttpRequest:
    """One inference request of `network`'s sample.

    Args:
        timeout_us: the deadline that the request asks for.
    """
    x = network.sample()
    tensor: dict[str, object] = {"name": INPUT, "shape": network.shape, "datatype": "FP32"}
    parameters: dict[str, object] = {} if timeout_us is None else {"timeout": timeout_us}
    path = f"/v2/models/{network.name}/infer"
    if kind == "json":
        tensor["data"] = [round(float(value), 4) for value in x.ravel()]
        head = {"inputs": [tensor]} | ({"parameters": parameters} if parameters else {})
        return HttpRequest(path, {"Content-Type": "application/json"}, _dumps(head))
    tensor["parameters"] = {"binary_data_size": x.nbytes}
    parameters["binary_data_output"] = True
    text = _dumps({"inputs": [tensor], "parameters": parameters})
    return HttpRequest(path, {_HEAD_LENGTH: str(len(text))}, text + x.astype("<f4").tobytes())


def read_answer(headers: dict[str, str], body: bytes) -> tuple[str, Floats]:
    """Version and logits of an answer.

    Args:
        headers: by lower-case name.

    Raises:
        ServerFailed: it is no answer to `infer`.
    """
    try:
        length = headers.get(_HEAD_LENGTH.lower())
        head = json.loads(body if length is None else body[: int(length)])
        output = next(each for each in head["outputs"] if each["name"] == OUTPUT)
        if length is None:
            values = np.asarray(output["data"], np.float32)
        else:
            values = np.frombuffer(body[int(length) :], "<f4")
        return str(head.get("model_version", "")), values.reshape(output["shape"])
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise ServerFailed(f"an answer that is none: {body[:200]!r}") from error


def _dumps(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _lua_byte(byte: int) -> str:
    """A byte in a Lua string: itself where that is safe, else its three-digit escape."""
    plain = 0x20 <= byte < 0x7F and byte not in b'"\\'
    return chr(byte) if plain else f"\\{byte:03d}"
