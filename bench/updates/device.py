"""A device's side in a process of its own: `python -m bench.updates.device TASK REQUEST.json`.

    listen   the floor: a bare paho subscriber that counts bytes and does nothing else
    pull     the agent's link, chunk port and transfer: verified chunks on the disk
    refresh  the agent's trust: metadata twice, the second time without news
    apply    the agent's decoder: a delta and an unpacked slot become the raw bundle

Prints one JSON object a line; `listen` says first that it is ready.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

Json = dict[str, Any]

_SILENCE_S: Final = 3.0
_CONNECT_S: Final = 20.0


class CountingLink:
    """A link that notes every chunk that reaches the process, whatever becomes of it.

    The note is one write to an open file, so it outlives a kill.
    """

    def __init__(self, link: Any, path: Path) -> None:
        self._link = link
        self._notes = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def subscribe(self, topic: str, handler: Callable[[bytes], None]) -> None:
        from edge_agent.wire.base import unpack_frame
        from edge_agent.wire.messages import ChunkReply

        def noting(payload: bytes) -> None:
            reply, body = unpack_frame(payload, ChunkReply, limit=1 << 20)
            os.write(self._notes, f"{reply.index} {len(body)} {len(payload)}\n".encode())
            handler(payload)

        self._link.subscribe(topic, noting)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)


def listen(ask: Json) -> Json:
    """Count what comes on the device's chunk topic until `bytes` are there, or nothing comes."""
    import paho.mqtt.client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion

    from edge_agent.wire import topics

    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=ask["id"], protocol=mqtt.MQTTv5)
    context = ssl.create_default_context(cafile=ask["ca"])
    context.load_cert_chain(ask["certificate"], ask["key"])
    client.tls_set_context(context)
    subscribed, done = threading.Event(), threading.Event()
    seen = {"bytes": 0, "first": 0.0, "last": 0.0}

    def on_message(client: object, data: object, message: mqtt.MQTTMessage) -> None:
        now = time.monotonic()
        seen["first"] = seen["first"] or now
        seen["last"] = now
        seen["bytes"] += len(message.payload)
        if seen["bytes"] >= ask["bytes"]:
            done.set()

    client.on_message = on_message
    client.on_connect = lambda *_: client.subscribe(topics.chunk_reply(ask["id"]), qos=0)
    client.on_subscribe = lambda *_: subscribed.set()
    client.connect(ask["host"], ask["port"])
    client.loop_start()
    if not subscribed.wait(_CONNECT_S):
        return {"error": "the broker does not answer"}
    print(json.dumps({"ready": True}), flush=True)
    while not done.wait(_SILENCE_S):
        if seen["first"] and time.monotonic() - seen["last"] > _SILENCE_S:
            break
    client.disconnect()
    return {"bytes": seen["bytes"], "seconds": seen["last"] - seen["first"]}


def pull(ask: Json) -> Json:
    """Download `encoding` of `chunk_bytes` into `directory`; notes replies at `notes` if given."""
    from edge_agent.link.chunks import MqttChunkPort
    from edge_agent.link.fetch import FetchPort
    from edge_agent.link.mqtt import Link, Retry
    from edge_agent.update.transfer import Transfer
    from edge_agent.wire.manifest import Encoding

    encoding = Encoding.model_validate(ask["encoding"])
    link = Link(
        host=ask["host"], port=ask["port"], device_id=ask["id"], ca=Path(ask["ca"]),
        certificate=Path(ask["certificate"]), key=Path(ask["key"]), retry=Retry(0.1, 0.5),
    )  # fmt: skip
    fetch = FetchPort(link, ask["id"])
    counted: Any = CountingLink(link, Path(ask["notes"])) if ask.get("notes") else link
    port = MqttChunkPort(counted, ask["id"])
    link.start()
    deadline = time.monotonic() + _CONNECT_S
    while not link.connected:
        if time.monotonic() > deadline:
            return {"error": "the broker does not answer"}
        time.sleep(0.01)
    hashes = fetch(f"chunks/{encoding.chunks_sha256}")
    transfer = Transfer(port, Path(ask["directory"]))
    idle_mib = _rss_mib()
    _forget_peak()
    started_at = time.monotonic()
    path = transfer.download(encoding, ask["chunk_bytes"], hashes)
    seconds = time.monotonic() - started_at
    peak_mib = _peak_mib()
    link.stop()
    return {
        "seconds": seconds, "bytes": path.stat().st_size, "over_idle_mib": peak_mib - idle_mib,
    }  # fmt: skip


def refresh(ask: Json) -> Json:
    """Bytes and files of a second refresh, when nothing was signed since the first."""
    from edge_agent.link.fetch import FetchPort
    from edge_agent.link.mqtt import Link, Retry
    from edge_agent.update.trust import Trust

    link = Link(
        host=ask["host"], port=ask["port"], device_id=ask["id"], ca=Path(ask["ca"]),
        certificate=Path(ask["certificate"]), key=Path(ask["key"]), retry=Retry(0.1, 0.5),
    )  # fmt: skip
    fetch = FetchPort(link, ask["id"])
    seen = {"bytes": 0, "requests": 0, "found": 0}

    def counting(path: str) -> bytes:
        seen["requests"] += 1
        data = fetch(path)  # raises for the next root, which there is none of
        seen["bytes"] += len(data)
        seen["found"] += 1
        return data

    trust = Trust(
        Path(ask["directory"]), counting, ask["id"], ask["profile"],
        image_root=ask["image_root"], director_root=ask["director_root"],
    )  # fmt: skip
    link.start()
    deadline = time.monotonic() + _CONNECT_S
    while not link.connected:
        if time.monotonic() > deadline:
            return {"error": "the broker does not answer"}
        time.sleep(0.01)
    trust.refresh()
    first = dict(seen)
    seen.update(bytes=0, requests=0, found=0)
    trust.refresh()
    trust.close()
    link.stop()
    return {"first": first, "again": seen}


def apply(ask: Json) -> Json:
    """Decode the delta at `delta` against the unpacked bundle `slot` into `out`."""
    import edge_agent.agent  # noqa: F401  (the baseline is an agent with everything imported)
    from edge_agent.update.base import SlotBundle
    from edge_agent.update.decode import decode
    from edge_agent.wire.manifest import Encoding

    encoding = Encoding.model_validate(ask["encoding"])
    baseline_mib = _rss_mib()
    _forget_peak()
    started_at = time.monotonic()
    with SlotBundle(Path(ask["slot"])) as base:
        if base.sha256() != encoding.base_sha256:
            return {"error": "the slot is not what the delta applies to"}
        source, out = Path(ask["delta"]), Path(ask["out"])
        decode(encoding, source, ask["length"], ask["sha256"], out, base)
    return {
        "seconds": time.monotonic() - started_at,
        "peak_mib": _peak_mib() - baseline_mib,
        "baseline_mib": baseline_mib,
    }


def _status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}")


def _rss_mib() -> float:
    return _status_mib("VmRSS")


def _peak_mib() -> float:
    return _status_mib("VmHWM")


def _forget_peak() -> None:
    """Start the peak from now.  Source: proc(5), `/proc/pid/clear_refs`, value 5."""
    Path("/proc/self/clear_refs").write_text("5")


_TASKS: Final = {"listen": listen, "pull": pull, "refresh": refresh, "apply": apply}


def main() -> None:
    ask = json.loads(Path(sys.argv[2]).read_text())
    print(json.dumps(_TASKS[sys.argv[1]](ask)), flush=True)


if __name__ == "__main__":
    main()
