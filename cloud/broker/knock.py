"""One short connection to the broker, to see who is let in, or to take a session over.

A client that connects under the id of another ends that one's session, wherever its connection is;
with a clean start nothing of it is left.  That is how a device is thrown out: mosquitto looks at
its revocation list for new connections only and would keep the live one for ever.
Source: MQTT 5.0, 3.1.4-3 (session taken over) and 3.1.2.4 (clean start).
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Final

from cloud.errors import OperatorError

TIMEOUT_S: Final = 5.0
KEEPALIVE_S: Final = 10
_CONNACK: Final = 0x20
_DISCONNECT: Final = b"\xe0\x00"


class BrokerAway(OperatorError):
    """The broker does not answer."""


class CertificateRefused(OperatorError):
    """The broker says that this certificate is revoked."""


def knock(host: str, port: int, *, ca: Path, chain: Path, client_id: str) -> bool:
    """Connect as `client_id` with a clean start, and leave again.

    Args:
        ca: certificate of the broker's authority.
        chain: certificate and key in one file.

    Returns:
        Whether the broker took the connection by its reason code.

    Raises:
        CertificateRefused: it refuses the certificate as revoked.
        BrokerAway: no answer, for whatever cause.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # in TLS 1.3 a client is done before the server has looked at its certificate, and the refusal
    # may be lost behind what the client has sent by then
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cafile=str(ca))
    context.load_cert_chain(str(chain))
    try:
        with (
            socket.create_connection((host, port), timeout=TIMEOUT_S) as raw,
            context.wrap_socket(raw, server_hostname=host) as line,
        ):
            line.sendall(_connect(client_id))
            answer = _read(line)
            if answer is not None:
                line.sendall(_DISCONNECT)
    except ssl.SSLError as error:
        if "REVOKED" in (error.reason or ""):
            raise CertificateRefused(f"{host}:{port} refuses a revoked certificate") from error
        raise BrokerAway(f"the broker at {host}:{port}: {error}") from error
    except OSError as error:
        raise BrokerAway(f"the broker at {host}:{port} does not answer: {error}") from error
    if answer is None:
        raise BrokerAway(f"the broker at {host}:{port} hung up without an answer")
    return answer == 0


def _connect(client_id: str) -> bytes:
    """CONNECT: MQTT 5, clean start, session ends with the connection, no will."""
    name = client_id.encode()
    body = (
        b"\x00\x04MQTT\x05\x02"
        + KEEPALIVE_S.to_bytes(2, "big")
        + b"\x00"
        + len(name).to_bytes(2, "big")
        + name
    )
    return bytes([0x10, *_length(len(body))]) + body


def _length(value: int) -> list[int]:
    """A variable byte integer."""
    digits = []
    while True:
        value, digit = divmod(value, 128)
        digits.append(digit | (0x80 if value else 0))
        if not value:
            return digits


def _read(line: ssl.SSLSocket) -> int | None:
    """The reason code of the CONNACK; None when none came."""
    data = b""
    while len(data) < 4:  # type, length, flags, reason: the length takes one byte here
        part = line.recv(256)
        if not part:
            return None
        data += part
    return data[3] if data[0] == _CONNACK and data[1] < 0x80 else None
