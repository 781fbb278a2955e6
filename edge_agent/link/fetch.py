"""Asking the control plane for metadata files; implements the update room's `Fetch`.

"Not found" is what the control plane says in words; silence is an error of its own, always.
A long file over a slow line is waited for as long as its parts keep coming.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from typing import Final

from edge_agent.link.errors import NotConnected
from edge_agent.link.mqtt import Link
from edge_agent.update.ports import NotFound, TransferError
from edge_agent.wire import topics
from edge_agent.wire.base import unpack_frame
from edge_agent.wire.errors import WireError
from edge_agent.wire.messages import FetchReply, FetchRequest

log = logging.getLogger("skerry.link")

MAX_PARTS: Final = 256
MAX_FILE_BYTES: Final = 16 << 20
ATTEMPTS: Final = 3
MAX_WAIT_S: Final = 120.0
"""Longest time that parts may keep coming for."""


class _Waiting:
    """One request and what has arrived for it."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.status = ""
        self.parts: dict[int, bytes] = {}
        self.count = 0
        self.bytes = 0


class FetchPort:
    """Fetches files.  Thread-safe; to be created before the link starts."""

    def __init__(self, link: Link, device_id: str, *, timeout_s: float = 5.0) -> None:
        """
        Args:
            timeout_s: longest silence of one attempt.
        """
        self._link = link
        self._device_id = device_id
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._waiting: dict[str, _Waiting] = {}
        link.subscribe(topics.fetch_reply(device_id), self._on_reply)

    def __call__(self, path: str) -> bytes:
        """All bytes of `path`; asks again when an answer is lost.

        Raises:
            NotFound: the control plane said so.
            TransferError: no line, no answer in time, denied, or the control plane cannot now.
        """
        for _ in range(ATTEMPTS):
            waiting = _Waiting()
            request_id = uuid.uuid4().hex
            with self._lock:
                self._waiting[request_id] = waiting
            try:
                request = FetchRequest(id=request_id, path=path)
                self._link.post(topics.fetch_request(self._device_id), request.encode())
                answered = self._wait(waiting)
            except NotConnected as error:
                raise TransferError(f"{path}: {error}") from error
            finally:
                with self._lock:
                    del self._waiting[request_id]
            if answered:
                return self._result(path, waiting)
        raise TransferError(f"{path}: no answer of the control plane")

    def _wait(self, waiting: _Waiting) -> bool:
        """Whether the reply is whole before the line falls silent."""
        deadline = time.monotonic() + max(MAX_WAIT_S, self._timeout_s)
        parts = -1
        while parts < len(waiting.parts) and time.monotonic() < deadline:
            parts = len(waiting.parts)
            if waiting.done.wait(self._timeout_s):
                return True
        return False

    @staticmethod
    def _result(path: str, waiting: _Waiting) -> bytes:
        if waiting.status == "not_found":
            raise NotFound(path)
        if waiting.status != "ok":
            raise TransferError(f"{path}: {waiting.status}")
        return b"".join(waiting.parts[index] for index in range(len(waiting.parts)))

    def _on_reply(self, payload: bytes) -> None:
        try:
            header, body = unpack_frame(payload, FetchReply)
        except WireError as error:
            log.warning("link.reply_dropped cause=%s", error)
            return
        with self._lock:
            waiting = self._waiting.get(header.id)
            if waiting is None or waiting.done.is_set():
                return
            if header.status != "ok":
                waiting.status = header.status
                waiting.done.set()
                return
            waiting.count = waiting.count or header.parts
            if (
                not 0 <= header.part < header.parts <= MAX_PARTS
                or header.parts != waiting.count
                or header.part in waiting.parts
            ):
                return
            waiting.parts[header.part] = bytes(body)
            waiting.bytes += len(body)
            if waiting.bytes > MAX_FILE_BYTES:
                waiting.status = "too large"
                waiting.done.set()
            elif len(waiting.parts) == header.parts:
                waiting.status = "ok" if waiting.bytes == header.length else "of a wrong length"
                waiting.done.set()
