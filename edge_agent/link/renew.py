"""Asking the control plane for a certificate; the answer, or that none came."""

from __future__ import annotations

import logging
import threading
from typing import Final

from edge_agent.link.errors import LinkError, NotConnected
from edge_agent.link.mqtt import Link
from edge_agent.wire import topics
from edge_agent.wire.errors import WireError
from edge_agent.wire.messages import RenewReply, RenewRequest

log = logging.getLogger("skerry.link")

TIMEOUT_S: Final = 15.0


class RenewPort:
    """One request at a time.  To be created before the link starts."""

    def __init__(self, link: Link, device_id: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._link = link
        self._device_id = device_id
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._answered = threading.Condition(self._lock)
        self._waiting_for = ""
        self._reply: RenewReply | None = None
        link.subscribe(topics.renew_reply(device_id), self._on_reply)

    def __call__(self, request: RenewRequest) -> RenewReply:
        """Send and wait.

        Raises:
            NotConnected: there is no line.
            LinkError: no answer in time.
        """
        with self._answered:
            self._waiting_for, self._reply = request.id, None
        if not self._link.publish(topics.renew_request(self._device_id), request.encode()):
            raise NotConnected("the broker did not take the request")
        with self._answered:
            self._answered.wait_for(lambda: self._reply is not None, self._timeout_s)
            reply, self._waiting_for = self._reply, ""
        if reply is None:
            raise LinkError("no answer of the control plane")
        return reply

    def _on_reply(self, payload: bytes) -> None:
        try:
            reply = RenewReply.decode(payload)
        except WireError as error:
            log.warning("link.reply_dropped cause=%s", error)
            return
        with self._answered:
            if reply.id == self._waiting_for:
                self._reply = reply
                self._answered.notify_all()
