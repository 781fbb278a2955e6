"""A device that only downloads, to be killed:
`python -m tests.update.pull_process CONFIG`, a JSON file.

Appends the length of every chunk that reaches the device to CONFIG's `count` file, so that what
came in vain can be told afterwards.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

from edge_agent.link.chunks import MqttChunkPort
from edge_agent.link.mqtt import Link, Retry
from edge_agent.update.transfer import Pace, Transfer
from edge_agent.wire import topics
from edge_agent.wire.manifest import Encoding


def main() -> None:
    config = json.loads(Path(sys.argv[1]).read_text())
    link = Link(
        host="127.0.0.1", port=config["port"], device_id="dev-1", ca=Path(config["ca"]),
        certificate=Path(config["certificate"]), key=Path(config["key"]), retry=Retry(0.1, 0.5),
    )  # fmt: skip
    port = MqttChunkPort(link, "dev-1")
    with Path(config["count"]).open("ab", buffering=0) as count:
        reply = topics.chunk_reply("dev-1")
        handler = link._handlers[reply]

        def counted(payload: bytes) -> None:
            count.write(struct.pack("<I", len(payload)))
            handler(payload)

        link.subscribe(reply, counted)
        link.start()
        link.wait_connected(20)
        encoding = Encoding.model_validate(config["encoding"])
        transfer = Transfer(port, Path(config["downloads"]), pace=Pace(4, config["kib_s"]))
        hashes = Path(config["hashes"]).read_bytes()
        transfer.download(encoding, config["chunk_bytes"], hashes)
        link.stop()
    print("done", flush=True)


if __name__ == "__main__":
    main()
