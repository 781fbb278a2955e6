"""Identities of simulated devices: enrolled as real ones are, and kept for the next time.

A directory holds

    fleet.json     the control plane and broker that they belong to
    ca.pem         its authority
    devices.jsonl  one line a device: id, profile, when its certificate ends
    DEVICE.pem     certificate and key, for the owner alone

A claim is spent for each; key and certificate request are made here.  What broke off goes on where
it stopped.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge_agent.disk import write_whole
from edge_agent.wire.ids import is_slug
from edge_agent.wire.messages import ClaimFile, EnrolReply, EnrolRequest
from fleet.client.client import Client
from fleet.client.errors import ApiError
from fleet.client.schemas import ClaimIn
from fleet.simulate.errors import ForeignIdentities, SimulationError
from fleet.simulate.models import Hardware, hardware_of

CLAIMS_AT_ONCE: Final = 200
"""Each claim carries the trust roots, so thousands at once are a long answer."""
ENROLLING_AT_ONCE: Final = 4
MIN_DAYS_LEFT: Final = 2


@dataclass(frozen=True, slots=True)
class Member:
    """One simulated device's identity; `chain` holds certificate and key."""

    device_id: str
    profile: str
    chain: Path


@dataclass(frozen=True, slots=True)
class Membership:
    """Identities with the broker that takes them."""

    host: str
    port: int
    ca: Path
    members: tuple[Member, ...]


def shares(count: int, weights: Mapping[str, float]) -> list[str]:
    """Profiles of `count` devices in proportion to `weights`, mixed evenly.

    Raises:
        SimulationError: no profile has a weight above 0.
    """
    if not weights or min(weights.values()) < 0 or sum(weights.values()) <= 0:
        raise SimulationError("no profile has a weight above 0")
    total = sum(weights.values())
    owed = dict.fromkeys(weights, 0.0)
    profiles = []
    for _ in range(count):
        for profile, weight in weights.items():
            owed[profile] += weight / total
        most = max(owed, key=lambda profile: owed[profile])
        owed[most] -= 1
        profiles.append(most)
    return profiles


def identities(
    api: Client,
    directory: Path,
    profiles: Sequence[str],
    *,
    prefix: str = "sim",
    labels: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Membership:
    """One enrolled device for each of `profiles`, from `directory` or enrolled now.

    Args:
        directory: only devices that a directory lacks are enrolled.
        prefix: of their names: PREFIX-00000 and so on.
        labels: of newly enrolled devices.
        progress: told how many are there, and of how many.

    Raises:
        ForeignIdentities: `directory` is of another control plane, or its certificates end soon.
        SimulationError: `prefix` makes no names.
        ApiError: the control plane refused, or does not answer.
    """
    names = [f"{prefix}-{number:05d}" for number in range(len(profiles))]
    if not is_slug(names[-1] if names else prefix):
        raise SimulationError(f"{prefix!r} makes no names of devices: use a-z, 0-9 and '-'")
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    known = _known(api, directory)
    wanted = [
        (name, profile)
        for name, profile in zip(names, profiles, strict=True)
        if known.get(name) != profile
    ]
    clash = next((name for name, _ in wanted if name in known), None)
    if clash is not None:
        raise ForeignIdentities(
            f"{directory}: {clash} is enrolled there as {known[clash]!r}; "
            "ask for the same profiles as before, or choose another directory and prefix"
        )
    done = len(profiles) - len(wanted)
    progress(done, len(profiles))
    with ThreadPoolExecutor(ENROLLING_AT_ONCE) as pool:
        for claims in _claims(api, wanted, dict(labels or {})):
            for _ in pool.map(lambda each: _enrol(api, directory, *each), claims):
                done += 1
                progress(done, len(profiles))
    host, port = _address(directory)
    return Membership(
        host,
        port,
        directory / "ca.pem",
        tuple(
            Member(name, profile, directory / f"{name}.pem")
            for name, profile in zip(names, profiles, strict=True)
        ),
    )


def _claims(
    api: Client, wanted: Sequence[tuple[str, str]], labels: dict[str, str]
) -> Iterator[list[tuple[str, ClaimFile, Hardware]]]:
    """Claims for all that are wanted, some at a time."""
    for profile in dict.fromkeys(profile for _, profile in wanted):
        hardware = hardware_of(profile)
        names = [name for name, each in wanted if each == profile]
        for first in range(0, len(names), CLAIMS_AT_ONCE):
            some = names[first : first + CLAIMS_AT_ONCE]
            request = ClaimIn(profile=profile, labels=labels, count=len(some))
            claims = api.create_claims(request)
            yield [(name, claim, hardware) for name, claim in zip(some, claims, strict=True)]


def _enrol(api: Client, directory: Path, name: str, claim: ClaimFile, hardware: Hardware) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "device")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    reply = api.enrol(
        EnrolRequest(
            claim_id=claim.claim_id,
            secret=claim.secret,
            csr_pem=csr.public_bytes(serialization.Encoding.PEM).decode(),
            inventory=hardware.inventory,
            name=name,
        )
    )
    _keep(directory, claim.profile, reply, key)


def _keep(
    directory: Path, profile: str, reply: EnrolReply, key: ec.EllipticCurvePrivateKey
) -> None:
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    # not synced: whoever loses power enrols a new fleet
    path = directory / f"{reply.device_id}.pem"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(reply.certificate_pem + pem)
    if not (directory / "fleet.json").exists():
        write_whole(directory / "ca.pem", reply.ca_pem.encode())
        about = {"broker_host": reply.broker_host, "broker_port": reply.broker_port}
        write_whole(directory / "fleet.json", json.dumps(about).encode())
    ends = x509.load_pem_x509_certificate(reply.certificate_pem.encode()).not_valid_after_utc
    line = {"id": reply.device_id, "profile": profile, "ends": ends.astimezone(dt.UTC).timestamp()}
    with (directory / "devices.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def _address(directory: Path) -> tuple[str, int]:
    about = json.loads((directory / "fleet.json").read_text())
    return str(about["broker_host"]), int(about["broker_port"])


def _known(api: Client, directory: Path) -> dict[str, str]:
    """Devices of the directory with their profiles.

    Raises:
        ForeignIdentities: they are of no use.
    """
    path = directory / "devices.jsonl"
    if not path.exists():
        return {}
    known: dict[str, str] = {}
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
            if row["ends"] - time.time() < MIN_DAYS_LEFT * 86400:
                raise ForeignIdentities(
                    f"{directory}: the certificate of {row['id']} ends soon or has ended; "
                    "choose another directory and prefix"
                )
            known[row["id"]] = row["profile"]
        except (ValueError, KeyError, TypeError):
            continue  # cut by a crash: enrolled, but of no use
    some = next(iter(known), None)
    if some is not None:
        try:
            api.device(some)
        except ApiError as error:
            if error.status != 404:
                raise
            raise ForeignIdentities(
                f"{directory}: {some} is no device of this control plane; choose another directory"
            ) from error
    return known
