"""Who gets which bytes: requests answered, refused and dropped."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy.orm import sessionmaker

from cloud.blobs import Blobs
from cloud.db.engine import Sessions, open_engine, open_sessions
from cloud.db.tables import Device, Release
from cloud.delivery import DEVICE_CACHE_S, Delivery
from cloud.publish import director_target, publish_release
from cloud.signing import Director, ImageRepository, init_keys
from edge_agent.wire import topics
from edge_agent.wire.base import WireModel, unpack_frame
from edge_agent.wire.messages import ChunkReply, ChunkRequest, FetchReply, FetchRequest

BUNDLE = bytes(range(256)) * 1000


class Bus:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.handlers: dict[str, Callable[[str, bytes], None]] = {}

    def subscribe(self, topic_filter: str, handler: Callable[[str, bytes], None]) -> None:
        self.handlers[topic_filter] = handler

    def publish(self, topic: str, payload: bytes, qos: int = 1, retain: bool = False) -> None:
        assert (qos, retain) == (0, False)
        self.sent.append((topic, payload))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A control plane's directory with one release and two devices; tests work on copies."""
    directory = tmp_path_factory.mktemp("prepared")
    keys = init_keys(directory / "keys", "passphrase")
    image = ImageRepository(directory / "image", keys)
    director = Director(directory / "director", keys)
    blobs = Blobs((directory / "blobs").as_uri())
    sessions = open_sessions(f"sqlite:///{directory / 'skerry.db'}")
    with sessions.begin() as session:
        for device in ("dev-1", "dev-2"):
            session.add(
                Device(
                    id=device, profile="p", labels={}, inventory={}, reported={}, desired={},
                    certificate_serial="1", certificate_expires_at=0.0, enrolled_at=0.0,
                )
            )  # fmt: skip
        row = publish_release(session, blobs, image, "digits", 1, "p", blobs.put(BUNDLE))
    director.assign("dev-1", [director_target(row, generation=1)])
    director.assign("dev-2", [])
    sessions.kw["bind"].dispose()
    return directory


@pytest.fixture
def sessions(prepared: Path, tmp_path: Path) -> Iterator[Sessions]:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    engine = open_engine(f"sqlite:///{tmp_path / 'skerry.db'}")
    yield sessionmaker(engine, expire_on_commit=False)
    engine.dispose()


@pytest.fixture
def blobs(tmp_path: Path, sessions: Sessions) -> Blobs:
    return Blobs((tmp_path / "blobs").as_uri())


@pytest.fixture
def release(sessions: Sessions) -> Release:
    with sessions() as session:
        return session.get_one(Release, "models/digits/p/1.bundle")


@pytest.fixture
def bus() -> Bus:
    return Bus()


@pytest.fixture
def delivery(tmp_path: Path, bus: Bus, blobs: Blobs, sessions: Sessions, release) -> Delivery:
    return Delivery(bus, blobs, tmp_path / "image", tmp_path / "director", sessions)


@pytest.fixture
def ask(delivery: Delivery, bus: Bus):
    """Sends a request as a device; gives the replies' headers and payloads."""

    def ask(request: WireModel, device: str = "dev-1") -> list[tuple[WireModel, bytes]]:
        bus.sent.clear()
        chunk = isinstance(request, ChunkRequest)
        topic = topics.chunk_request(device) if chunk else topics.fetch_request(device)
        expected = topics.chunk_reply(device) if chunk else topics.fetch_reply(device)
        delivery.handle(topic, request.encode())
        assert {sent_to for sent_to, _ in bus.sent} <= {expected}
        kind = ChunkReply if chunk else FetchReply
        replies = [unpack_frame(frame, kind) for _, frame in bus.sent]
        return [(header, bytes(data)) for header, data in replies]

    return ask


def fetch(path: str) -> FetchRequest:
    return FetchRequest(id="7", path=path)


def chunks(sha256: str, first: int, bitmap: str) -> ChunkRequest:
    return ChunkRequest(sha256=sha256, first=first, bitmap=bitmap, chunk_bytes=65536)


def raw_form(release: Release) -> dict[str, object]:
    (form,) = [form for form in release.info["encodings"] if form["algo"] == "raw"]
    return form


def test_metadata_and_chunk_lists_are_delivered(ask, release, tmp_path: Path) -> None:
    ((header, data),) = ask(fetch("image/timestamp.json"))
    assert (header.status, header.id, header.parts) == ("ok", "7", 1)
    assert data == (tmp_path / "image" / "timestamp.json").read_bytes()
    ((header, data),) = ask(fetch("image/1.models%2Fdigits%2Fp.json"))
    assert header.status == "ok"
    ((header, data),) = ask(fetch(f"chunks/{raw_form(release)['chunks_sha256']}"))
    assert len(data) == 32 * -(-len(BUNDLE) // 65536)


def test_long_files_come_in_parts(ask, tmp_path: Path) -> None:
    long = b"x" * 150_000
    (tmp_path / "image" / "9.targets.json").write_bytes(long)
    replies = ask(fetch("image/9.targets.json"))
    assert [(header.part, header.parts, header.length) for header, _ in replies] == [
        (0, 3, 150_000),
        (1, 3, 150_000),
        (2, 3, 150_000),
    ]
    assert b"".join(data for _, data in replies) == long


def test_each_device_gets_its_own_director(ask, tmp_path: Path) -> None:
    own = tmp_path / "director" / "devices"
    for device in ("dev-1", "dev-2"):
        ((_, data),) = ask(fetch("director/1.targets.json"), device)
        assert data == (own / device / "1.targets.json").read_bytes()
    ((header, _),) = ask(fetch("director/1.root.json"))
    assert header.status == "ok"


@pytest.mark.parametrize(
    "path",
    [
        "image/absent.json",
        "image/../skerry.db",
        "image/../director/1.root.json",
        "image/.lock",
        "image//etc/passwd.json",
        "director/devices/dev-2/timestamp.json",
        "director/../../keys/image-root-1.pem",
        "director/..%2f..%2fx.json",
        "keys/image-root-1.pem",
        "chunks/abc",
        "chunks/" + "0" * 64,
        "",
    ],
)
def test_anything_else_is_not_found(ask, path: str) -> None:
    ((header, data),) = ask(fetch(path))
    assert (header.status, data) == ("not_found", b"")


def test_chunks_of_the_bitmap_are_delivered(ask, release) -> None:
    replies = ask(chunks(str(raw_form(release)["sha256"]), 1, "5"))
    assert [(header.index, data) for header, data in replies] == [
        (1, BUNDLE[65536 : 2 * 65536]),
        (3, BUNDLE[3 * 65536 :]),
    ]


def test_blobs_that_are_not_released_stay_private(ask, blobs: Blobs) -> None:
    private = blobs.put(b"another device's sample")
    ((header, data),) = ask(chunks(private, 0, "1"))
    assert (header.status, data) == ("not_found", b"")
    ((header, _),) = ask(fetch(f"chunks/{private}"))
    assert header.status == "not_found"


def test_a_release_that_awaits_signatures_stays_private_until_it_has_them(
    ask, sessions: Sessions, release
) -> None:
    for awaiting, expected in ((True, "not_found"), (False, "ok")):
        with sessions.begin() as session:
            session.get_one(Release, release.target).awaiting = awaiting
        ((header, _),) = ask(chunks(str(raw_form(release)["sha256"]), 0, "1"))
        assert header.status == expected


def test_a_chunk_beyond_the_end_is_not_found(ask, release) -> None:
    ((header, _),) = ask(chunks(str(raw_form(release)["sha256"]), 400, "1"))
    assert header.status == "not_found"


def test_a_release_made_later_is_found(ask, blobs, sessions, tmp_path, release) -> None:
    ask(chunks("0" * 64, 0, "1"))
    image = ImageRepository(tmp_path / "image", init_keys(tmp_path / "keys", "passphrase"))
    with sessions.begin() as session:
        new = publish_release(session, blobs, image, "digits", 2, "p", blobs.put(b"new" * 99))
    ((header, _),) = ask(chunks(str(raw_form(new)["sha256"]), 0, "1"))
    assert header.status == "ok"


def test_unknown_and_revoked_devices_are_denied(
    ask, sessions: Sessions, release, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = str(raw_form(release)["sha256"])
    for request in (fetch("image/timestamp.json"), chunks(sha, 0, "7")):
        ((header, data),) = ask(request, "stranger")
        assert (header.status, data) == ("denied", b"")
    assert ask(fetch("image/timestamp.json"))[0][0].status == "ok"
    with sessions.begin() as session:
        session.get_one(Device, "dev-1").revoked = True
    from cloud import delivery

    now = delivery.time.monotonic() + DEVICE_CACHE_S
    monkeypatch.setattr(delivery.time, "monotonic", lambda: now)
    assert ask(fetch("image/timestamp.json"))[0][0].status == "denied"


@pytest.mark.parametrize("payload", [b"", b"{}", b"\xff" * 10, b"[" * 1000, b"x" * 200_000])
def test_malformed_requests_are_dropped(delivery: Delivery, bus: Bus, payload: bytes) -> None:
    delivery.handle(topics.fetch_request("dev-1"), payload)
    delivery.handle(topics.chunk_request("dev-1"), payload)
    delivery.handle("skerry/v1/nonsense", payload)
    assert bus.sent == []


def test_a_full_queue_drops_instead_of_blocking(delivery: Delivery, bus: Bus) -> None:
    delivery.start()
    assert set(bus.handlers) == {
        "$share/delivery/skerry/v1/d/+/fetch/request",
        "$share/delivery/skerry/v1/d/+/chunk/request",
    }
    delivery.stop()
    for handler in bus.handlers.values():
        for _ in range(5000):
            handler(topics.fetch_request("dev-1"), b"{}")
    assert (delivery._fetches.qsize(), delivery._chunks.qsize()) == (1024, 1024)


def test_metadata_does_not_wait_behind_chunks(delivery: Delivery, bus: Bus, release) -> None:
    answered, blocked = threading.Event(), threading.Event()

    def publish(topic: str, payload: bytes, qos: int = 1, retain: bool = False) -> None:
        if topic == topics.fetch_reply("dev-1"):
            answered.set()
        else:
            assert blocked.wait(10)  # a line that takes no more chunks

    bus.publish = publish  # type: ignore[method-assign]
    delivery.start()
    fetches, chunk_requests = (
        bus.handlers[topics.shared("delivery", topic)]
        for topic in (topics.fetch_request("+"), topics.chunk_request("+"))
    )
    sha256 = str(raw_form(release)["sha256"])
    for _ in range(10):
        chunk_requests(topics.chunk_request("dev-1"), chunks(sha256, 0, "f").encode())
    fetches(topics.fetch_request("dev-1"), fetch("image/timestamp.json").encode())
    try:
        assert answered.wait(10)
    finally:
        blocked.set()
        delivery.stop()
