"""Downloads through a real broker: bad lines, forgers, servers and devices that are killed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest

from cloud.db.tables import Release
from cloud.delivery import Bus, Delivery
from cloud.publish import chunk_list
from edge_agent.link.chunks import MqttChunkPort
from edge_agent.link.fetch import FetchPort
from edge_agent.link.mqtt import Link, Retry
from edge_agent.update.transfer import Pace
from edge_agent.wire import topics
from edge_agent.wire.base import pack_frame
from edge_agent.wire.messages import ChunkReply, Desired
from tests.update.lines import BreakingLine, LossyConnection

ROOT = Path(__file__).parents[2]


def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.02)


@pytest.fixture
def online(device, broker) -> Callable[..., AbstractContextManager[Link]]:
    """Puts the device's ports on the broker, through a TCP port of one's choice."""

    @contextmanager
    def connect(
        port: int = broker.port, timeout_s: float = 1.0, max_kib_s: float = 0.0
    ) -> Iterator[Link]:
        files = broker.device("dev-1")
        link = Link(
            host=broker.host, port=port, device_id="dev-1", ca=files.ca,
            certificate=files.certificate, key=files.key, retry=Retry(0.05, 0.2),
        )  # fmt: skip
        device.power_off()
        device.fetch = FetchPort(link, "dev-1", timeout_s=timeout_s)
        device.chunks = MqttChunkPort(link, "dev-1")
        device.boot()
        device.transfer._reply_timeout_s = 0.5
        device.transfer._stall_timeout_s = 20.0
        device.transfer._pace = Pace(max_kib_s=max_kib_s)
        link.start()
        until(lambda: link.connected)
        try:
            yield link
        finally:
            link.stop()

    return connect


@contextmanager
def served(world, bus: Bus) -> Iterator[Delivery]:
    image, director = world.directory / "image", world.directory / "director"
    delivery = Delivery(bus, world.blobs, image, director, world.sessions)
    delivery.start()
    try:
        yield delivery
    finally:
        delivery.stop()


def assigned(world, length: int) -> Desired:
    """The twin that names a release of about `length` bytes."""
    data = random.Random(3).randbytes(length)
    return world.assign("dev-1", world.release(1, world.bundle(1, {"model.onnx": data})), 1)


def apply_until_settled(device, twin: Desired) -> None:
    """As the updater's thread does: again until it is settled."""
    until(lambda: device.apply(twin), 100.0)


def test_attack_17_an_install_comes_whole_through_a_line_that_loses_doubles_and_reorders(
    world, device, online, broker
) -> None:
    twin = assigned(world, 3 << 20)
    with broker.connection("lossy") as connection:
        line = LossyConnection(connection, seed=11)
        with served(world, line), online():
            apply_until_settled(device, twin)
        line.stop()
    assert min(line.lost, line.doubled, line.delayed) > 5
    assert device.served_version() == 1


@pytest.mark.slow
def test_an_install_comes_whole_over_a_line_that_breaks_again_and_again(
    world, device, online, broker
) -> None:
    twin = assigned(world, 6 << 20)
    with (
        BreakingLine(broker.port, breaks_after=2 << 20) as line,
        broker.connection("delivery") as connection,
        served(world, connection),
        online(line.port),
    ):
        apply_until_settled(device, twin)
    assert line.breaks >= 2
    assert device.served_version() == 1


def test_attack_20_a_release_withdrawn_midway_is_cancelled(world, device, online, broker) -> None:
    twin = assigned(world, 4 << 20)
    with (
        broker.connection("delivery") as connection,
        served(world, connection),
        online(max_kib_s=256),
    ):
        thread = threading.Thread(target=device.updater.run)
        thread.start()
        device.updater.submit(twin)
        until(lambda: (device.transfer.progress or (0, 0))[0] > 0)
        device.updater.submit(Desired(version=2, models={}))
        until(lambda: "cancelled" in device.phases())
        device.updater.stop()
        thread.join(10)
    assert device.served_version() is None


# ── forgers ──────────────────────────────────────────────────────────────────────────────────────


def forger(broker, device_id: str) -> mqtt.Client:
    """A connection with the certificate of another device of the fleet."""
    files = broker.device(device_id)
    client = mqtt.Client(
        mqtt.CallbackAPIVersion.VERSION2, client_id=device_id, protocol=mqtt.MQTTv5
    )
    context = ssl.create_default_context(cafile=str(files.ca))
    context.load_cert_chain(str(files.certificate), str(files.key))
    client.tls_set_context(context)
    return client


def test_attack_22_no_device_can_write_to_the_topics_of_another(broker) -> None:
    refused: dict[int, bool] = {}
    connected = threading.Event()
    client = forger(broker, "dev-2")
    client.on_connect = lambda *_: connected.set()
    client.on_publish = lambda _c, _u, mid, reason, _p: refused.update({mid: reason.is_failure})
    client.connect(broker.host, broker.port)
    client.loop_start()
    try:
        assert connected.wait(10)
        others = [
            topics.chunk_reply("dev-1"), topics.fetch_reply("dev-1"), topics.desired("dev-1"),
            topics.chunk_request("dev-1"), topics.fetch_request("dev-1"),
            topics.chunk_reply("dev-2"), topics.desired("dev-2"), topics.HOST,
        ]  # fmt: skip
        mids = [client.publish(topic, b"forged", 1).mid for topic in others]
        allowed = client.publish(topics.chunk_request("dev-2"), b"own", 1).mid
        until(lambda: len(refused) == len(others) + 1, 20.0)
    finally:
        client.disconnect()
        client.loop_stop()
        _close(client)
    assert all(refused[mid] for mid in mids)
    assert not refused[allowed]


def _close(client: mqtt.Client) -> None:
    with contextlib.suppress(OSError):
        if (sock := client.socket()) is not None:
            sock.close()


def test_attack_22_forged_chunks_of_a_thief_of_the_control_plane_are_not_installed(
    world, device, online, broker
) -> None:
    """Worse than a device: whoever has the control plane's own certificate may write anywhere."""
    twin = assigned(world, 2 << 20)
    with broker.connection("thief") as thief, broker.connection("delivery") as connection:

        class Forging:
            """Sends a forged chunk, and an answer nobody asked for, before each true one."""

            forged = 0

            def subscribe(self, *arguments: object) -> None:
                connection.subscribe(*arguments)  # type: ignore[arg-type]

            def publish(self, topic: str, payload: bytes, **options: bool) -> None:
                if topic == topics.chunk_reply("dev-1"):
                    thief.publish(topic, payload[:-9] + b"malicious", qos=0)
                    unasked = ChunkReply(sha256="0" * 64, index=0, status="not_found")
                    thief.publish(topic, pack_frame(unasked, b""), qos=0)
                    thief.publish(topic, b"\xff" * 1000, qos=0)
                    self.forged += 1
                connection.publish(topic, payload, **options)  # type: ignore[arg-type]

        forging = Forging()
        with served(world, forging), online():
            apply_until_settled(device, twin)
    assert forging.forged > 30
    assert device.served_version() == 1


# ── killed processes ─────────────────────────────────────────────────────────────────────────────


def spawn(module: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextmanager
def chunk_server(world, broker, name: str) -> Iterator[subprocess.Popen[str]]:
    module = "tests.update.delivery_process"
    pki = broker.directory / "pki"
    with spawn(module, world.directory, pki, broker.port, name) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_one_of_two_chunk_servers_is_killed_and_the_other_goes_on(
    world, device, online, broker
) -> None:
    twin = assigned(world, 6 << 20)
    answers = {name: world.directory / name for name in ("server-a", "server-b")}
    with (
        chunk_server(world, broker, "server-a") as killed,
        chunk_server(world, broker, "server-b"),
        online(max_kib_s=2048),
    ):
        thread = threading.Thread(target=device.updater.run)
        thread.start()
        device.updater.submit(twin)
        until(lambda: (device.transfer.progress or (0, 0))[0] > 2 << 20)
        before = {name: path.stat().st_size for name, path in answers.items()}
        killed.kill()
        until(lambda: "healthy" in device.phases())
        device.updater.stop()
        thread.join(10)
    assert min(before.values()) > 0, "both answered"
    assert answers["server-b"].stat().st_size > before["server-b"]
    assert device.served_version() == 1


@pytest.mark.slow
def test_ten_kills_of_the_device_waste_no_more_than_a_hundredth(
    world, device, broker, tmp_path: Path
) -> None:
    chunk_bytes = 2048
    twin = assigned(world, 8 << 20)
    release = next(iter(twin.models.values()))
    with world.sessions() as session:
        info = session.get_one(Release, release.target).info
    (form,) = [form for form in info["encodings"] if form["algo"] == "raw"]
    data = world.blobs.get(form["sha256"])
    hashes = chunk_list(data, chunk_bytes)
    files, count = broker.device("dev-1"), tmp_path / "count"
    (tmp_path / "hashes").write_bytes(hashes)
    form = form | {"chunks_sha256": hashlib.sha256(hashes).hexdigest()}
    config = {
        "port": broker.port, "ca": str(files.ca), "certificate": str(files.certificate),
        "key": str(files.key), "count": str(count), "encoding": form, "chunk_bytes": chunk_bytes,
        "hashes": str(tmp_path / "hashes"), "downloads": str(tmp_path / "downloads"),
        "kib_s": 1536,
    }  # fmt: skip
    (tmp_path / "config").write_text(json.dumps(config))
    count.touch()
    total = len(hashes) // 32
    with broker.connection("delivery") as connection, served(world, connection):
        for kill in range(1, 11):
            with spawn("tests.update.pull_process", tmp_path / "config") as process:
                until(lambda kill=kill: count.stat().st_size // 4 > total * kill // 11)
                process.kill()
        with spawn("tests.update.pull_process", tmp_path / "config") as process:
            out, _ = process.communicate(timeout=60)
    assert out == "done\n"
    assert (tmp_path / "downloads" / f"{form['sha256']}.part").read_bytes() == data
    wasted = count.stat().st_size // 4 - total
    print(f"{wasted} of {total} chunks came in vain: {100 * wasted / total:.2f} %")
    assert wasted <= total / 100
