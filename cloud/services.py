"""What the processes of the control plane share: opened once, passed down.

`initialise` creates a control plane in an empty directory; `open_services` opens one that exists.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud.blobs import Blobs
from cloud.db.engine import Sessions, open_sessions
from cloud.db.tables import Token
from cloud.errors import OperatorError
from cloud.settings import Settings
from cloud.signing import Director, ImageRepository, KeyStore, init_keys
from cloud.signing.evidence import EvidenceKey
from cloud.signing.keys import INVENTORY_NAME
from edge_agent.disk import write_whole
from fleet.client.schemas import Role
from fleet.enrolment.ca import CertificateAuthority

CONTROL_PLANE_IDENTITY = "control-plane"
"""Common name of the certificate with which our own processes speak to the broker."""


@dataclass(frozen=True)
class Services:
    """Everything that talks to disk, opened."""

    settings: Settings
    sessions: Sessions
    blobs: Blobs
    authority: CertificateAuthority
    image_repository: ImageRepository
    director: Director
    evidence_key: EvidenceKey


def initialise(settings: Settings) -> None:
    """Create keys, certificates, repositories, database and first token where they are missing.

    Idempotent, and safe to be interrupted: each part is written whole or not at all.
    """
    directory = settings.directory
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    passphrase = passphrase_of(directory)
    CertificateAuthority.open(directory / "pki", passphrase)
    init_keys(directory / "keys", passphrase, inventory=directory / "tuf" / INVENTORY_NAME)
    services = open_services(settings)
    token_path = directory / "tokens" / "admin"
    if not token_path.exists():
        with services.sessions.begin() as session:
            token = new_token(session, "admin", "admin")
        write_secret(token_path, token)
    services.sessions.kw["bind"].dispose()


def open_services(settings: Settings) -> Services:
    """Open the control plane in `settings.directory`.

    Raises:
        OperatorError: there is none.
    """
    directory = settings.directory
    if not (directory / "keys").is_dir():
        raise OperatorError(
            f"{directory}: no control plane here; start one with 'skerry up --dir {directory}'"
        )
    passphrase = passphrase_of(directory)
    keystore = KeyStore(directory / "keys", passphrase, directory / "tuf" / INVENTORY_NAME)
    return Services(
        settings=settings,
        sessions=open_sessions(settings.effective_database_url),
        blobs=Blobs(settings.effective_blob_url),
        authority=CertificateAuthority.open(directory / "pki", passphrase),
        image_repository=ImageRepository(directory / "tuf" / "image", keystore),
        director=Director(directory / "tuf" / "director", keystore),
        evidence_key=EvidenceKey.create(directory / "evidence", passphrase),
    )


def new_token(session: Session, name: str, role: Role) -> str:
    """Create an API token with 256 random bits; only its digest is stored."""
    token = secrets.token_urlsafe(32)
    session.add(Token(sha256=token_digest(token), name=name, role=role, created_at=time.time()))
    return token


def token_digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def find_token(session: Session, token: str) -> Token | None:
    """The live token with this text, if any."""
    row = session.scalar(select(Token).where(Token.sha256 == token_digest(token)))
    return row if row is not None and not row.revoked else None


def write_secret(path: Path, text: str) -> None:
    """Write `text` to `path` for the owner alone, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(path, text.encode())


def passphrase_of(directory: Path) -> str:
    """Passphrase of all key files: from the environment, else drawn once and kept beside them.

    A passphrase kept beside the keys protects backups of `keys/` alone; an operator who wants more
    sets SKERRY_PASSPHRASE and keeps it elsewhere.
    """
    if given := os.environ.get("SKERRY_PASSPHRASE"):
        return given
    path = directory / "passphrase"
    if not path.exists():
        write_secret(path, secrets.token_urlsafe(32))
    return path.read_text().strip()
