"""Chunks over MQTT; implements the update room's `ChunkPort`."""

from __future__ import annotations

import logging
import queue
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
        link.subscribe(topics.chunk_reply(device_id), self._on_reply)

    @property
    def replies(self) -> ChunkReplies:
        return self._replies

    def request(self, request: ChunkRequest) -> bool:
        """Send a request; whether there was a line to send it on."""
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
        try:
            self._replies.put_nowait((header, bytes(body)))
        except queue.Full:
            log.warning("link.chunk_dropped cause=queue full")
