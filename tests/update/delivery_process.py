"""A chunk server of its own: `python -m tests.update.delivery_process WORLD PKI PORT NAME`.

Prints "ready", appends a byte to WORLD/NAME for each reply, and serves until its input ends.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sqlalchemy.orm import sessionmaker

from cloud.blobs import Blobs
from cloud.broker.connection import Connection
from cloud.db.engine import open_engine
from cloud.delivery import Delivery
from fleet.enrolment.ca import CertificateAuthority


def main() -> None:
    directory, pki, port, name = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    files = CertificateAuthority.open(pki, "test").client_files()
    sessions = sessionmaker(open_engine(f"sqlite:///{directory / 'skerry.db'}"))
    with (directory / name).open("ab", buffering=0) as count:

        class Counted(Connection):
            def publish(self, topic: str, payload: bytes, *args: int, **named: bool) -> None:
                super().publish(topic, payload, *args, **named)  # type: ignore[arg-type]
                count.write(b".")

        connection = Counted(host="127.0.0.1", port=port, client_id=name, files=files)
        delivery = Delivery(
            connection,
            Blobs((directory / "blobs").as_uri()),
            directory / "image",
            directory / "director",
            sessions,
        )
        delivery.start()
        with connection:
            print("ready", flush=True)
            sys.stdin.read()
        delivery.stop()


if __name__ == "__main__":
    main()
