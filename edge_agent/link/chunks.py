"""Chunks over MQTT; implements the update room's `ChunkPort`.

All replies come on one topic.  Downloads beside the updater's get a port of their own, which takes
the replies for the blob that it asked for last.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable
from typing import Final

from edge_agent.link.errors import NotConnected
from edge_agent.link.mqtt import Link
from edge_agent.update.ports import ChunkReplies
from edge_agent.wire import topics
from edge_agent.wire.base import unpack_frame
from edge_agent.wire.errors import WireError
from edge_agent.wire.messages import ChunkReply, ChunkRequest

log = logging.getLogger("skerry.link")

QUEUED_CHUNKS: Final = 32
"""Replies held until the transfer takes them, twice its usual window; more are dropped and asked
for again."""
MAX_FRAME_BYTES: Final = 160 * 1024


class MqttChunkPort:
    """See the module.  Create before the link starts."""

    def __init__(self, link: Link, device_id: str, *, queued: int = QUEUED_CHUNKS) -> None:
        """
        Args:
            queued: most replies held in memory; above the window of the transfer.
        """
        self._link = link
        self._topic = topics.chunk_request(device_id)
        self._replies: ChunkReplies = queue.Queue(queued)
        self._asked = ""
        self._beside: list[BesidePort] = []
        link.subscribe(topics.chunk_reply(device_id), self._on_reply)

    @property
    def replies(self) -> ChunkReplies:
        return self._replies

    def beside(self, queued: int = QUEUED_CHUNKS) -> BesidePort:
        """A port for another download at the same time.  Before the link starts."""
        port = BesidePort(self._send, queued)
        self._beside.append(port)
        return port

    def request(self, request: ChunkRequest) -> bool:
        """Send a request; whether there was a line to send it on."""
        self._asked = request.sha256
        return self._send(request)

    def _send(self, request: ChunkRequest) -> bool:
        try:
            self._link.post(self._topic, request.encode())
        except NotConnected:
            return False
        return True

    def _on_reply(self, payload: bytes) -> None:
        try:
            header, body = unpack_frame(payload, ChunkReply, limit=MAX_FRAME_BYTES)
        except WireError as error:
            log.warning("link.chunk_dropped cause=%s", error)
            return
        asking = [port.replies for port in self._beside if port.asked == header.sha256]
        if not asking or self._asked == header.sha256:
            asking.append(self._replies)
        for replies in asking:
            try:
                replies.put_nowait((header, bytes(body)))
            except queue.Full:
                log.warning("link.chunk_dropped cause=queue full")


class BesidePort:
    """A `ChunkPort` that shares the line with another one."""

    def __init__(self, send: Callable[[ChunkRequest], bool], queued: int) -> None:
        self._send = send
        self.asked = ""
        """Digest of the blob that was asked for last."""
        self._replies: ChunkReplies = queue.Queue(queued)

    @property
    def replies(self) -> ChunkReplies:
        return self._replies

    def request(self, request: ChunkRequest) -> bool:
        """Send a request; whether there was a line to send it on."""
        self.asked = request.sha256
        return self._send(request)
