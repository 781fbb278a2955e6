"""The other side: a device asked over the protocol that it serves.

Rules:
    * A device that is busy is asked again a few times; nothing else is tried twice.
    * A device that does not show its steps is asked for its answers alone, and says so.
    * Every request names the version, so one that changes meanwhile is noticed.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote

import httpx

from cloud.parity.errors import DeviceAnswer, DeviceUnreachable, OtherVersion
from cloud.parity.protocol import HEAD_LENGTH, decode, encode
from cloud.parity.traces import Stop, Trace
from edge_agent.pipeline import Tensors
from edge_agent.wire.manifest import Manifest

TIMEOUT_S: Final = 60.0
_BUSY: Final = frozenset({429, 503})
_ATTEMPTS: Final = 5
_LONGEST_PAUSE_S: Final = 2.0
_LONGEST_LABEL: Final = 63
"""Bytes between two dots of a host's name (RFC 1035, 2.3.4)."""

_SHOWN: Final = 200
_REJECTED: Final = "rejected: "
_STEP_FAILED: Final = re.compile(r"^step '(?P<name>[^']+)'")


class TooLarge(DeviceAnswer):
    """The device takes no request of this size."""


@dataclass(frozen=True, slots=True)
class DeviceAddress:
    """Where a device answers: a URL or a Unix socket.  It holds no secret and may be shown."""

    url: str = ""
    socket: Path | None = None

    def __str__(self) -> str:
        return str(self.socket) if self.socket is not None else self.url

    @classmethod
    def of_url(cls, url: str) -> Self:
        """`HOST:PORT` or `http://HOST:PORT`.

        Raises:
            DeviceUnreachable: it is no address.
        """
        if "@" in url:  # before anything that could show the address
            raise DeviceUnreachable(
                "the address holds a user or a password; a device takes a token, "
                "set SKERRY_DEVICE_TOKEN"
            )
        full = url if "://" in url else f"http://{url}"
        try:
            parsed = httpx.URL(full)
        except (httpx.InvalidURL, UnicodeError) as error:
            raise DeviceUnreachable(f"{url[:_SHOWN]!r} is not an address: {error}") from error
        labels = parsed.raw_host.removesuffix(b".").split(b".")
        if parsed.scheme not in ("http", "https") or not all(
            0 < len(label) <= _LONGEST_LABEL for label in labels
        ):
            raise DeviceUnreachable(
                f"{url[:_SHOWN]!r} is not an address; it looks like http://127.0.0.1:8900"
            )
        return cls(url=full)

    @classmethod
    def of_socket(cls, path: Path) -> Self:
        """A Unix socket of an agent on this machine.

        Raises:
            DeviceUnreachable: there is none.
        """
        if not path.is_socket():
            raise DeviceUnreachable(f"no device answers at {path}: there is no socket")
        return cls(socket=path)

    @classmethod
    def of_directory(cls, directory: Path) -> Self:
        """The administrative socket of the agent that runs in `directory`.

        Raises:
            DeviceUnreachable: no agent runs there.
        """
        about = directory / "run" / "agent.json"
        try:
            told = json.loads(about.read_text(encoding="utf-8"))
            path = Path(told["unix_socket"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DeviceUnreachable(
                f"no agent runs in {directory} ({about} cannot be read); "
                f"start it with 'skerry-agent run --dir {directory}'"
            ) from error
        return cls.of_socket(path)


class Device:
    """One device.  A context manager.

    Attributes:
        why_no_steps: why it only tells its answers, in its own words; empty as long as it shows
            its steps.
    """

    def __init__(
        self,
        address: DeviceAddress,
        *,
        token: str = "",
        timeout_s: float = TIMEOUT_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            token: bearer token, where the device asks for one.

        Raises:
            DeviceUnreachable: the token is none that a request can carry.
        """
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise DeviceUnreachable(
                "the device's token holds a character that no token has: "
                "it takes printable ASCII without spaces; look at SKERRY_DEVICE_TOKEN"
            )
        self.address = address
        self.why_no_steps = ""
        self._sleep = sleep
        socket = address.socket
        transport = httpx.HTTPTransport(uds=str(socket)) if socket is not None else None
        self._http = httpx.Client(
            base_url=address.url or "http://device",
            headers={"Authorization": f"Bearer {token}"} if token else {},
            transport=transport,
            timeout=timeout_s,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def version(self, model: str) -> int:
        """The version of `model` that it serves.

        Raises:
            OtherVersion: it serves no such model.
            DeviceUnreachable, DeviceAnswer: it gives no answer, or one of no use.
        """
        response = self._ask("GET", f"/v2/models/{quote(model, safe='')}")
        if response.status_code == 404:
            raise OtherVersion(f"the device at {self.address}: {_said(response)}")
        self._require_success(response)
        try:
            return int(response.json()["versions"][0])
        except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
            raise DeviceAnswer(
                f"{self.address} does not describe model {model!r}; is it a Skerry agent?"
            ) from error

    def installed(self, model: str) -> tuple[str, str]:
        """Its profile, and the variant of `model`; empty where the device does not tell.

        Only the administrative socket tells.
        """
        response = self._ask("GET", "/status")
        if response.status_code != 200:
            return "", ""
        try:
            told = response.json()
            variant = (told.get("models") or {}).get(model, {}).get("variant", "")
            return str(told.get("profile", "")), str(variant)
        except (ValueError, AttributeError):
            return "", ""

    def run(self, tensors: Tensors, manifest: Manifest) -> Trace:
        """Feed one batch to it.

        Raises:
            TooLarge: the batch is larger than it takes.
            OtherVersion: it serves this version no more.
            DeviceUnreachable, DeviceAnswer: it gives no answer, or one of no use.
        """
        response = self._infer(tensors, manifest)
        if response.status_code == 403 and not self.why_no_steps:
            self.why_no_steps = _said(response)
            response = self._infer(tensors, manifest)
        shows = not self.why_no_steps
        said = "" if response.is_success else _said(response)
        match response.status_code:
            case 404:
                raise OtherVersion(f"the device changed during the comparison: {said}")
            case 413:
                raise TooLarge(said)
            case 400 if said.startswith(_REJECTED):
                return Trace(stop=Stop("refused", said.removeprefix(_REJECTED)), shows_steps=shows)
            case 500:
                return Trace(stop=_failure(said, manifest), shows_steps=shows)
        self._require_success(response)
        length = response.headers.get(HEAD_LENGTH)
        trace = decode(
            response.content, int(length) if length and length.isdecimal() else None, manifest
        )
        if not trace.shows_steps and shows:
            self.why_no_steps = "it answers without them"
        return trace

    def _infer(self, tensors: Tensors, manifest: Manifest) -> httpx.Response:
        body, head_length = encode(tensors, manifest.inputs, trace=not self.why_no_steps)
        path = f"/v2/models/{quote(manifest.model, safe='')}/versions/{manifest.version}/infer"
        return self._ask("POST", path, content=body, headers={HEAD_LENGTH: str(head_length)})

    def _ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                response = self._http.request(method, path, **arguments)
            except httpx.TimeoutException as error:
                raise DeviceUnreachable(f"the device at {self.address} takes too long") from error
            except httpx.HTTPError as error:
                raise DeviceUnreachable(f"no device answers at {self.address}: {error}") from error
            if response.status_code not in _BUSY or attempt == _ATTEMPTS:
                break
            self._sleep(_pause_s(response))
        if response.status_code == 401:
            raise DeviceAnswer(
                f"the device at {self.address} wants a bearer token; set SKERRY_DEVICE_TOKEN"
            )
        return response

    def _require_success(self, response: httpx.Response) -> None:
        if not response.is_success:
            raise DeviceAnswer(
                f"the device at {self.address} answers {response.status_code}: {_said(response)}"
            )


def _said(response: httpx.Response) -> str:
    """The device's error on one line."""
    try:
        text = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        text = response.text
    return " ".join(str(text).split())[:300] or response.reason_phrase


def _failure(said: str, manifest: Manifest) -> Stop:
    """A failure that the device tells of, and its step where the text names one beyond doubt."""
    found = _STEP_FAILED.match(said)
    names = [step.name for step in manifest.pipeline]
    if found and names.count(found["name"]) == 1:
        return Stop("failed", said, names.index(found["name"]))
    return Stop("failed", said)


def _pause_s(response: httpx.Response) -> float:
    value = response.headers.get("Retry-After", "")
    return min(float(value), _LONGEST_PAUSE_S) if value.isdecimal() else 0.2
