"""A control plane in a process of its own: `python -m bench.updates.plane DIRECTORY`.

Takes one JSON command a line on its standard input and answers each with one line: `publish`,
`assign`, `device`, `claim`, `sent`, `flood`.  Everything is real: database, signed repositories,
mosquitto with mutual TLS, delivery, ingest and the API; what a person would click is called here.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import paho.mqtt.client as mqtt
import uvicorn
from paho.mqtt.enums import CallbackAPIVersion
from sqlalchemy import select

from bench.loads.processes import free_port
from cloud.api.app import create_api
from cloud.api.context import Context
from cloud.broker.connection import Connection
from cloud.broker.mosquitto import Mosquitto
from cloud.db.tables import Device, Release
from cloud.delivery import Delivery
from cloud.ingest import Ingest
from cloud.publish import bases_of, director_target, forms_of, publish_release
from cloud.services import Services, initialise, open_services
from cloud.settings import Settings
from edge_agent.device.identity import certificate_request, new_key, write_key
from edge_agent.wire import topics
from edge_agent.wire.messages import ClaimFile, Desired, DesiredModel
from fleet.client.client import Client
from fleet.client.schemas import ClaimIn

PROBATION_S: Final = 0.5
FLOOD_MESSAGE_BYTES: Final = 64 * 1024
FLOOD_UNSENT: Final = 16

Json = dict[str, Any]


class CountingBus:
    """The connection that delivery publishes on, with a count of what it sends to each device."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.sent_bytes: Counter[str] = Counter()

    def subscribe(self, *arguments: Any, **options: Any) -> object:
        return self._connection.subscribe(*arguments, **options)

    def publish(self, topic: str, payload: bytes, *arguments: Any, **options: Any) -> object:
        self.sent_bytes[topic] += len(payload)
        return self._connection.publish(topic, payload, *arguments, **options)


class Plane:
    """The running control plane and its commands, each a method that takes and gives JSON."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        settings = Settings(
            directory=directory / "plane", api_port=free_port(), broker_port=free_port()
        )
        initialise(settings)
        self._settings = settings
        self._services: Services = open_services(settings)
        self._generation = 0
        self._serve_api()
        self._broker = Mosquitto.for_authority(
            directory / "broker",
            self._services.authority,
            host="127.0.0.1",
            port=settings.broker_port,
        )
        self._broker.start()
        self._connection = self._connect("plane")
        # as delivery has it in a process of its own
        self._line = self._connect("delivery", answered=False)
        self._bus = CountingBus(self._line)
        delivery = Delivery(
            self._bus,
            self._services.blobs,
            self._services.image_repository.directory,
            self._services.director.directory,
            self._services.sessions,
        )
        Ingest(self._services.sessions, self._services.blobs, self._connection).start()
        delivery.start()
        self._connection.start(10)
        self._line.start(10)

    def _connect(self, client_id: str, *, answered: bool = True) -> Connection:
        return Connection(
            host="127.0.0.1",
            port=self._settings.broker_port,
            client_id=client_id,
            files=self._services.authority.client_files(),
            answered=answered,
        )

    def close(self) -> None:
        self._line.stop()
        self._connection.stop()
        self._broker.stop()

    def publish(self, ask: Json) -> Json:
        """Sign and record a bundle of `model`, `version`, `profile` at the path `bundle`."""
        started_at = time.time()
        services, model, profile = self._services, ask["model"], ask["profile"]
        sha = services.blobs.put(Path(ask["bundle"]).read_bytes())
        with services.sessions() as session:
            forms = forms_of(session, services.blobs, sha, bases_of(session, model, profile))
        encoded_at = time.time()
        with services.sessions.begin() as session:
            release = publish_release(
                session, services.blobs, services.image_repository,
                model, ask["version"], profile, sha, forms,
            )  # fmt: skip
            return {
                "target": release.target, "info": release.info, "length": release.length,
                "started_at": started_at, "encode_seconds": encoded_at - started_at,
            }  # fmt: skip

    def assign(self, ask: Json) -> Json:
        """Put the release `target` on `device`, alone."""
        with self._services.sessions() as session:
            release = session.scalars(select(Release).where(Release.target == ask["target"])).one()
        self._generation += 1
        target = director_target(release, generation=self._generation, probation_s=PROBATION_S)
        self._services.director.assign(ask["device"], [target])
        model = DesiredModel(
            target=release.target, version=release.version, counter=release.counter,
            generation=self._generation, probation_s=PROBATION_S,
        )  # fmt: skip
        desired = Desired(version=self._generation, models={release.model: model})
        self._connection.publish(topics.desired(ask["device"]), desired.encode(), retain=True)
        return {}

    def device(self, ask: Json) -> Json:
        """Enrol `id` on `profile` without an agent: paths of its files, the broker's address."""
        place = self._directory / "devices" / ask["id"]
        place.mkdir(parents=True)
        key = new_key()
        write_key(place / "device.key", key)
        authority = self._services.authority
        certificate = authority.issue_device(certificate_request(key), ask["id"])
        (place / "device.pem").write_text(certificate.pem)
        with self._services.sessions.begin() as session:
            session.add(
                Device(
                    id=ask["id"], profile=ask["profile"], labels={}, inventory={}, reported={},
                    desired={}, certificate_serial=certificate.serial,
                    certificate_expires_at=0.0, enrolled_at=0.0,
                )
            )  # fmt: skip
        return {
            "host": "127.0.0.1", "port": self._settings.broker_port, "id": ask["id"],
            "ca": str(authority.certificate_path), "certificate": str(place / "device.pem"),
            "key": str(place / "device.key"), "profile": ask["profile"],
            "image_root": self._services.image_repository.root_json(),
            "director_root": self._services.director.root_json(),
        }  # fmt: skip

    def claim(self, ask: Json) -> Json:
        """A claim for a real agent of `profile`, as the file at `path`."""
        token = (self._settings.directory / "tokens" / "admin").read_text().strip()
        with Client(self._settings.api_url, token) as client:
            [claim] = client.create_claims(ClaimIn(profile=ask["profile"]))
        text = ClaimFile.model_validate(claim.model_dump()).model_dump_json()
        Path(ask["path"]).write_text(text)
        return {}

    def sent(self, ask: Json) -> Json:
        """Bytes that delivery has sent to `device`: of chunks, and of files, frames included."""
        sent, device = self._bus.sent_bytes, ask["device"]
        return {
            "chunks": sent[topics.chunk_reply(device)],
            "files": sent[topics.fetch_reply(device)],
        }

    def flood(self, ask: Json) -> Json:
        """Send `bytes` to `device` as fast as the broker takes them, by nothing but paho."""
        files = self._services.authority.client_files()
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="flood", protocol=mqtt.MQTTv5)
        context = ssl.create_default_context(cafile=str(files.ca))
        context.load_cert_chain(str(files.chain))
        client.tls_set_context(context)
        client.connect("127.0.0.1", self._settings.broker_port)
        client.loop_start()
        topic, body = topics.chunk_reply(ask["device"]), os.urandom(FLOOD_MESSAGE_BYTES)
        waiting: list[mqtt.MQTTMessageInfo] = []
        for _ in range(-(-int(ask["bytes"]) // len(body))):
            waiting.append(client.publish(topic, body, qos=0))
            if len(waiting) >= FLOOD_UNSENT:
                waiting.pop(0).wait_for_publish(10)
        for info in waiting:
            info.wait_for_publish(10)
        client.disconnect()
        client.loop_stop()
        return {}

    def _serve_api(self) -> None:
        app = create_api(Context.of(self._services))
        port = self._settings.api_port
        server = uvicorn.Server(
            uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", lifespan="off")
        )
        threading.Thread(target=server.run, daemon=True).start()
        while not server.started:
            time.sleep(0.02)


def main() -> None:
    said = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    plane = Plane(Path(sys.argv[1]))
    said.write(json.dumps({"ready": True}) + "\n")
    try:
        for line in sys.stdin:
            ask = json.loads(line)
            try:
                answer = getattr(plane, ask["do"])(ask)
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            said.write(json.dumps(answer) + "\n")
    finally:
        plane.close()


if __name__ == "__main__":
    main()
