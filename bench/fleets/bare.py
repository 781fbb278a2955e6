"""A subscriber that only acknowledges: `python -m bench.fleets.bare DIRECTORY`.

It takes the devices' journalled messages from a shared subscription as ingest does, over the same
connection class, looks at each header, and acknowledges.  It keeps nothing, so what it manages is
what broker, TLS, Python and the devices let anybody manage.  Ends when its input ends.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cloud.broker.connection import Connection, Message
from cloud.services import open_services
from cloud.settings import Settings
from edge_agent.wire import topics
from edge_agent.wire.base import unpack_frame
from edge_agent.wire.messages import Ack, UplinkHeader

GROUP: Final = "ingest"


def main() -> None:
    directory, port = Path(sys.argv[1]), int(sys.argv[2])
    services = open_services(Settings(directory=directory, broker_port=port))
    connection = Connection(
        host="127.0.0.1", port=port, client_id="bare", files=services.authority.client_files()
    )

    def acknowledge(messages: Sequence[Message]) -> None:
        streams: dict[tuple[str, str], list[int]] = defaultdict(list)
        for message in messages:
            header, _ = unpack_frame(message.payload, UplinkHeader)
            streams[topics.parse(message.topic).device, header.stream].append(header.seq)
        for (device, stream), seqs in streams.items():
            connection.post(topics.ack(device), Ack(stream=stream, seqs=tuple(seqs)).encode())

    connection.subscribe_batched(topics.shared(GROUP, topics.uplink("+", "+")), acknowledge)
    connection.start(10)
    print('{"ready": true}', flush=True)
    sys.stdin.read()
    connection.stop()


if __name__ == "__main__":
    main()
