"""Serving metadata, chunk lists and chunks to devices over MQTT.

Any number of processes may do it: they share the subscription.

Rules:
    * Who asks is the device of the *topic*, which the broker enforced; `director/…` is resolved to
      that device's own files, whatever the message says.
    * An unknown or revoked device gets "denied", a missing file "not_found", a fault of ours
      "unavailable": never silence for the first two, so a device can tell them from a lost line.
    * Chunks and chunk lists are served of released bundles only, not of any blob; of a candidate
      to the device alone that has an open order to measure it.
    * Requests wait in bounded queues, metadata apart from chunks, which may take long; what does
      not fit is dropped, devices ask again.
    * Chunks are read as fast as the line takes them, so memory stays flat however many ask.
Trusts nothing and signs nothing: devices verify all of it.
"""

from __future__ import annotations

import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from obstore.exceptions import BaseError
from sqlalchemy import select

from cloud.blobs import BlobMissing, Blobs
from cloud.db.engine import Sessions, read_only
from cloud.db.tables import Device, Release
from cloud.errors import OperatorError
from cloud.lab.assigning import lab_assignments
from edge_agent.wire import topics
from edge_agent.wire.base import pack_frame
from edge_agent.wire.errors import WireError
from edge_agent.wire.manifest import Encoding, ReleaseInfo
from edge_agent.wire.messages import ChunkReply, ChunkRequest, FetchReply, FetchRequest

log = logging.getLogger("skerry.delivery")

GROUP: Final = "delivery"
PART_BYTES: Final = 64 * 1024
QUEUED_REQUESTS: Final = 1024
CHUNK_WORKERS: Final = 2
DEVICE_CACHE_S: Final = 2.0
"""Longest time for which a revocation goes unnoticed here; the broker cuts the line as well."""

_METADATA_NAME: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._%-]{0,190}\.json$")
_ROOT_NAME: Final = re.compile(r"^[1-9][0-9]{0,9}\.root\.json$")
_SHA256: Final = re.compile(r"^[0-9a-f]{64}$")


class Bus(Protocol):
    """The part of `cloud.broker.connection.Connection` that delivery needs."""

    def subscribe(self, topic_filter: str, handler: Callable[[str, bytes], None]) -> object:
        """Call `handler(topic, payload)` for each message."""
        ...

    def publish(self, topic: str, payload: bytes, qos: int = 1, retain: bool = False) -> object:
        """Send a message; waits while too much is unsent."""
        ...


class Denied(Exception):
    """The device is unknown or revoked."""


_Requests = queue.Queue[tuple[str, bytes] | None]


class Delivery:
    """See the module."""

    def __init__(
        self,
        connection: Bus,
        blobs: Blobs,
        image_dir: Path,
        director_dir: Path,
        sessions: Sessions,
    ) -> None:
        """
        Args:
            image_dir, director_dir: directories of the two signed repositories.
            sessions: for who is enrolled and what is released; only read.
        """
        self._connection = connection
        self._blobs = blobs
        self._image_dir = image_dir
        self._director_dir = director_dir
        self._sessions = read_only(sessions)
        self._fetches: _Requests = queue.Queue(QUEUED_REQUESTS)
        self._chunks: _Requests = queue.Queue(QUEUED_REQUESTS)
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._devices: dict[str, tuple[float, bool]] = {}
        self._released: dict[str, int] = {}
        self._ordered: dict[str, tuple[float, dict[str, int]]] = {}

    def start(self) -> None:
        """Subscribe and serve on threads of our own."""
        for waiting in (self._fetches, *[self._chunks] * CHUNK_WORKERS):
            name = f"delivery-{len(self._threads)}"
            thread = threading.Thread(target=self._work, args=(waiting,), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        for topic_filter, waiting in (
            (topics.fetch_request("+"), self._fetches),
            (topics.chunk_request("+"), self._chunks),
        ):
            handler = partial(self._enqueue, waiting)
            self._connection.subscribe(topics.shared(GROUP, topic_filter), handler)

    def stop(self) -> None:
        """Finish what is being answered; drop the rest."""
        for waiting, workers in ((self._fetches, 1), (self._chunks, CHUNK_WORKERS)):
            while True:
                try:
                    waiting.get_nowait()
                except queue.Empty:
                    break
            for _ in range(workers):
                waiting.put(None)
        for thread in self._threads:
            thread.join(10)
        self._threads.clear()

    # ── requests ─────────────────────────────────────────────────────────────────────────────────

    @staticmethod
    def _enqueue(waiting: _Requests, topic: str, payload: bytes) -> None:
        try:
            waiting.put_nowait((topic, payload))
        except queue.Full:
            log.warning("delivery.overloaded dropped=1")

    def _work(self, waiting: _Requests) -> None:
        while (item := waiting.get()) is not None:
            try:
                self.handle(*item)
            except OperatorError as error:  # the line broke; the device asks again
                log.warning("delivery.unanswered topic=%s cause=%s", item[0], error)
            except Exception:
                log.exception("delivery.failed topic=%s", item[0])

    def handle(self, topic: str, payload: bytes) -> None:
        """Answer one request; a malformed one is dropped."""
        try:
            address = topics.parse(topic)
            if address.channel == "fetch/request":
                self._answer_fetch(address.device, FetchRequest.decode(payload))
            elif address.channel == "chunk/request":
                self._answer_chunks(address.device, ChunkRequest.decode(payload))
        except WireError as error:
            log.warning("delivery.malformed topic=%s error=%s", topic, error)

    def _answer_fetch(self, device: str, request: FetchRequest) -> None:
        try:
            data = self._file(device, request.path)
        except Denied:
            self._refuse_fetch(device, FetchReply(id=request.id, status="denied"))
            return
        except (FileNotFoundError, BlobMissing):
            self._refuse_fetch(device, FetchReply(id=request.id, status="not_found"))
            return
        except (OSError, BaseError):
            log.exception("delivery.unreadable path=%s", request.path)
            self._refuse_fetch(device, FetchReply(id=request.id, status="unavailable"))
            return
        parts = max(1, -(-len(data) // PART_BYTES))
        for part in range(parts):
            header = FetchReply(
                id=request.id, status="ok", part=part, parts=parts, length=len(data)
            )
            piece = memoryview(data)[part * PART_BYTES : (part + 1) * PART_BYTES]
            self._send(topics.fetch_reply(device), pack_frame(header, piece))

    def _refuse_fetch(self, device: str, reply: FetchReply) -> None:
        self._send(topics.fetch_reply(device), pack_frame(reply, b""))

    def _answer_chunks(self, device: str, request: ChunkRequest) -> None:
        bitmap = int(request.bitmap, 16)
        wanted = [request.first + bit for bit in range(bitmap.bit_length()) if bitmap >> bit & 1]
        topic = topics.chunk_reply(device)
        for index in wanted:
            try:
                data = self._chunk(device, request, index)
                header = ChunkReply(sha256=request.sha256, index=index)
            except Denied:
                data, header = b"", _no_chunk(request, index, "denied")
            except BlobMissing:
                data, header = b"", _no_chunk(request, index, "not_found")
            self._send(topic, pack_frame(header, data))
            if header.status != "ok":
                return  # what holds for one chunk of a blob holds for all

    def _send(self, topic: str, frame: bytes) -> None:
        self._connection.publish(topic, frame, qos=0, retain=False)

    # ── what may be read ─────────────────────────────────────────────────────────────────────────

    def _file(self, device: str, path: str) -> bytes:
        self._check_device(device)
        kind, _, name = path.partition("/")
        if kind == "chunks" and _SHA256.match(name):
            return self._released_blob(device, name)
        if kind in ("image", "director") and _METADATA_NAME.match(name):
            return self._metadata(device, kind, name).read_bytes()
        raise FileNotFoundError(path)

    def _metadata(self, device: str, kind: str, name: str) -> Path:
        if kind == "image":
            return self._image_dir / name
        if _ROOT_NAME.match(name):
            return self._director_dir / name
        return self._director_dir / "devices" / device / name

    def _released_blob(self, device: str, sha256: str) -> bytes:
        self._allowed_length(device, sha256)
        return self._blobs.get(sha256)

    def _chunk(self, device: str, request: ChunkRequest, index: int) -> bytes:
        self._check_device(device)
        start = index * request.chunk_bytes
        if start >= self._allowed_length(device, request.sha256):
            raise BlobMissing(f"{request.sha256} has no chunk {index}")
        return self._blobs.get_range(request.sha256, start, request.chunk_bytes)

    def _check_device(self, device: str) -> None:
        now = time.monotonic()
        with self._lock:
            checked_at, allowed = self._devices.get(device, (-DEVICE_CACHE_S, False))
        if now - checked_at >= DEVICE_CACHE_S:
            with self._sessions() as session:
                row = session.get(Device, device)
                allowed = row is not None and not row.revoked
            with self._lock:
                if len(self._devices) > 100_000:
                    self._devices.clear()
                self._devices[device] = (now, allowed)
        if not allowed:
            raise Denied(device)

    def _allowed_length(self, device: str, sha256: str) -> int:
        """Length in bytes of a blob that this device may have, chunk lists included."""
        if sha256 in self._released:  # the common case asks nobody
            return self._released[sha256]
        ordered = self._ordered_lengths(device, sha256).get(sha256)
        return self._released_length(sha256) if ordered is None else ordered

    def _ordered_lengths(self, device: str, wanted: str) -> dict[str, int]:
        """What open measure orders let a device fetch; looked up anew for what is unknown."""
        now = time.monotonic()
        with self._lock:
            looked_at, lengths = self._ordered.get(device, (-DEVICE_CACHE_S, {}))
        if wanted not in lengths or now - looked_at >= DEVICE_CACHE_S:
            with self._sessions() as session:
                infos = [each.info for each in lab_assignments(session, device)]
            lengths = {}
            for info in infos:
                _note_lengths(lengths, info.encodings, info.chunk_bytes)
            with self._lock:
                if len(self._ordered) > 10_000:
                    self._ordered.clear()
                self._ordered[device] = (now, lengths)
        return lengths

    def _released_length(self, sha256: str) -> int:
        """Length of a released blob in bytes, chunk lists included."""
        if sha256 not in self._released:
            with self._sessions() as session:
                signed = select(Release.info).where(Release.awaiting.is_(False))
                infos = session.scalars(signed).all()
            released: dict[str, int] = {}
            for info in map(ReleaseInfo.model_validate, infos):
                _note_lengths(released, info.encodings, info.chunk_bytes)
            self._released = released
        try:
            return self._released[sha256]
        except KeyError:
            raise BlobMissing(f"no released blob {sha256}") from None


def _note_lengths(lengths: dict[str, int], forms: Sequence[Encoding], chunk_bytes: int) -> None:
    for form in forms:
        lengths[form.sha256] = form.length
        lengths[form.chunks_sha256] = 32 * -(-form.length // chunk_bytes)


def _no_chunk(request: ChunkRequest, index: int, status: str) -> ChunkReply:
    return ChunkReply.model_validate({"sha256": request.sha256, "index": index, "status": status})
