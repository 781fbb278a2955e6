"""The offline ceremony by files: a request leaves, comes back with signatures, is applied.

The machine that signs needs nothing but the request and its key.  It believes nothing in the file
but the bytes it signs: what they would release is worked out from those bytes, and what is called
known already is what this very key signed before.  The machine that applies believes nothing but
signatures of the keys its own metadata lists, over the documents that it staged itself.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import Key, Signature, Signer
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Delegations, Metadata, Role, Root, TargetFile, Targets
from tuf.api.serialization import DeserializationError, SerializationError

from cloud.signing.errors import BadRequest, SignerUnavailable, StaleRequest
from cloud.signing.keys import RepositoryName
from cloud.signing.repository import SignedRepository
from cloud.signing.signers import why
from cloud.signing.staging import StagedDocument
from edge_agent.disk import write_whole

MAX_REQUEST_BYTES: Final = 64 << 20
KEYID: Final = r"^[0-9a-f]{64}$"
NO_METADATA: Final = (
    ValueError, TypeError, KeyError, AttributeError, RecursionError, DeserializationError,
    SerializationError,
)  # fmt: skip
"""What reading any JSON as metadata raises."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Wanted(_Frozen):
    """Signatures that one authority asks for; `keys` are as metadata writes them."""

    by: str = Field(max_length=300)
    threshold: int = Field(ge=1, le=100)
    keys: dict[str, dict[str, Any]] = Field(max_length=100)


class Document(_Frozen):
    """One document to sign."""

    repository: RepositoryName
    repository_id: str = Field(pattern=KEYID)
    """SHA-256 of the repository's first root."""
    role: str = Field(max_length=300)
    signed: str
    """Its canonical JSON: the bytes to sign, as text."""
    before: dict[str, Any] | None
    """The version that clients see, whole with its signatures."""
    wanted: tuple[Wanted, ...] = Field(max_length=4)
    signatures: dict[str, str] = Field(default_factory=dict, max_length=100)
    """Hexadecimal signatures by key id."""

    @property
    def keyids(self) -> set[str]:
        """Every key whose signature counts."""
        return {keyid for each in self.wanted for keyid in each.keys}

    def metadata(self) -> Metadata[Any]:
        """The document without signatures.

        Raises:
            BadRequest: it is no metadata, not written canonically, or more than is ever shown.
        """
        try:
            signed = json.loads(self.signed)
            metadata: Metadata[Any] = Metadata.from_dict({"signed": signed, "signatures": []})
            canonical = metadata.signed_bytes == self.signed.encode()
        except NO_METADATA as error:
            raise BadRequest(f"document {self.role!r} is no metadata: {why(error)}") from error
        if not canonical or not isinstance(metadata.signed, Root | Targets):
            raise BadRequest(f"document {self.role!r} is no canonical root or targets metadata")
        for keyid, key in _keys_of(metadata.signed).items():
            # clients take any name for a key: under a known name another key would not show
            if (
                hashlib.sha256((encode_canonical(key.to_dict()) or "").encode()).hexdigest()
                != keyid
            ):
                raise BadRequest(f"document {self.role!r} calls another key {keyid[:12]}")
        if (hidden := _hidden(metadata.signed)) is not None:
            raise BadRequest(f"document {self.role!r} has {hidden}, which cannot be shown")
        return metadata


class SigningRequest(_Frozen):
    """The file that travels."""

    kind: Literal["skerry-signing-request"] = "skerry-signing-request"
    format: Literal[1] = 1
    made_at: int
    summary: tuple[str, ...]
    """For eyes only: whoever signs is shown what the documents themselves say."""
    documents: tuple[Document, ...] = Field(min_length=1, max_length=20_000)


# ── the machine of the control plane ─────────────────────────────────────────────────────────────


def make_request(
    repositories: Iterable[SignedRepository], clock: Callable[[], float] = time.time
) -> SigningRequest:
    """Everything that waits, as one request.

    Raises:
        BadRequest: nothing waits.
    """
    documents = [
        _document(staged, repository.identity())
        for repository in repositories
        for staged in repository.staged()
    ]
    if not documents:
        raise BadRequest("nothing waits for signatures")
    summary = [line for document in documents for line in describe(document, trust_before=True)]
    return SigningRequest(made_at=int(clock()), summary=tuple(summary), documents=tuple(documents))


def apply_request(
    repositories: Mapping[RepositoryName, SignedRepository], request: SigningRequest
) -> dict[str, list[str]]:
    """Verify a request's signatures, merge them, publish what has enough.

    Returns:
        By repository, the roles that wait for further signatures.

    Raises:
        BadRequest: it is of another control plane, or a signature is not good; nothing is changed.
        StaleRequest: what waits has changed since; nothing is changed.
    """
    merged: dict[RepositoryName, dict[str, Metadata[Any]]] = {}
    staged = {
        (name, each.role): each
        for name, repository in repositories.items()
        for each in repository.staged()
    }
    for document in request.documents:
        repository = repositories[document.repository]
        if document.repository_id != repository.identity():
            raise BadRequest(
                f"the request is for another control plane's {document.repository} repository"
            )
        metadata = _checked(document, repository, staged.get((document.repository, document.role)))
        if metadata is not None:
            merged.setdefault(document.repository, {})[document.role] = metadata
    if not any(document.signatures for document in request.documents):
        raise BadRequest("the request has no signatures; 'skerry keys sign' puts them in")
    return {str(name): repositories[name].merge(signed) for name, signed in merged.items()}


def _document(staged: StagedDocument, identity: str) -> Document:
    return Document(
        repository=staged.repository,
        repository_id=identity,
        role=staged.role,
        signed=staged.metadata.signed_bytes.decode(),
        before=staged.before.to_dict() if staged.before is not None else None,
        wanted=tuple(
            Wanted(
                by=need.by,
                threshold=need.threshold,
                keys={keyid: key.to_dict() for keyid, key in need.keys.items()},
            )
            for need in staged.needs
        ),
        signatures={
            keyid: signature.signature for keyid, signature in staged.metadata.signatures.items()
        },
    )


def _checked(
    document: Document, repository: SignedRepository, staged: StagedDocument | None
) -> Metadata[Any] | None:
    """The staged document with the request's signatures; None when it is published already."""
    asked = document.metadata()
    if staged is None or staged.metadata.signed_bytes != asked.signed_bytes:
        published = repository.published(document.role)
        if published is not None and published.signed_bytes == asked.signed_bytes:
            return None
        raise StaleRequest(
            f"{document.repository} {document.role} has changed since the request was made; "
            "make a new one by 'skerry keys request'"
        )
    keys = {keyid: key for need in staged.needs for keyid, key in need.keys.items()}
    for keyid, text in document.signatures.items():
        if keyid not in keys:
            raise BadRequest(
                f"key {keyid[:12]} signed {document.role} of the {document.repository} repository "
                "and is none of its keys"
            )
        signature = Signature(keyid, text)
        try:
            keys[keyid].verify_signature(signature, asked.signed_bytes)
        except (UnverifiedSignatureError, ValueError) as error:
            raise BadRequest(
                f"the signature of key {keyid[:12]} over {document.role} of the "
                f"{document.repository} repository is not good"
            ) from error
        asked.signatures[keyid] = signature
    return asked


# ── the machine of the key ───────────────────────────────────────────────────────────────────────


def sign_request(request: SigningRequest, signers: Sequence[Signer]) -> tuple[SigningRequest, int]:
    """Sign every document that counts these keys; returns the request and how many were signed.

    Raises:
        BadRequest: a document is damaged, or a key counts for none of them.
        SignerUnavailable: a token or key service failed.
    """
    used: set[str] = set()
    documents = []
    count = 0
    for document in request.documents:
        metadata = document.metadata()
        signatures = dict(document.signatures)
        for signer in signers:
            keyid = signer.public_key.keyid
            if keyid not in document.keyids:
                continue
            used.add(keyid)
            try:
                signatures[keyid] = metadata.sign(signer, append=True).signature
            except UnsignedMetadataError as error:
                cause = error.__cause__ or error
                raise SignerUnavailable(f"key {keyid[:12]} did not sign: {why(cause)}") from error
        count += signatures != document.signatures
        documents.append(document.model_copy(update={"signatures": signatures}))
    for signer in signers:
        if (keyid := signer.public_key.keyid) not in used:
            raise BadRequest(f"key {keyid[:12]} is asked for by nothing in this request")
    return request.model_copy(update={"documents": tuple(documents)}), count


def summary_of(request: SigningRequest, keys: Iterable[Key]) -> list[str]:
    """What the documents would do, a line each; new is all that none of `keys` signed before.

    Raises:
        BadRequest: a document is damaged.
    """
    keys = list(keys)
    lines = []
    for document in request.documents:
        lines += describe(document, trust_before=_signed_by(document, keys))
    return lines


def describe(document: Document, *, trust_before: bool) -> list[str]:
    """What a document would change, a line each, safe to print.

    Args:
        trust_before: whether `document.before` may be taken for what is known already.
    """
    after = document.metadata().signed
    before = _before(document) if trust_before else None
    if before is not None and before.version != after.version - 1:
        before = None
    place = f"{document.repository} {document.role}"
    head = f"{place}: version {after.version}, expires {after.expires:%Y-%m-%d}"
    if before is None and document.before is not None:
        head += " (this key did not sign the version before: all of it is shown)"
    if isinstance(after, Root):
        detail = _root_changes(before if isinstance(before, Root) else None, after)
    else:
        detail = _targets_changes(before if isinstance(before, Targets) else None, after)
    if not detail:
        detail = ["nothing new: renewed only"]
    return [_printable(head), *(_printable(f"  {line}") for line in detail)]


def _before(document: Document) -> Root | Targets | None:
    try:
        metadata: Metadata[Any] = Metadata.from_dict(json.loads(json.dumps(document.before)))
    except NO_METADATA:
        return None
    signed = metadata.signed
    return signed if isinstance(signed, Root | Targets) else None


def _signed_by(document: Document, keys: Iterable[Key]) -> bool:
    """Whether one of these keys signed the version before."""
    if document.before is None or _before(document) is None:
        return False
    metadata: Metadata[Any] = Metadata.from_dict(json.loads(json.dumps(document.before)))
    for key in keys:
        signature = metadata.signatures.get(key.keyid)
        if signature is None:
            continue
        try:
            key.verify_signature(signature, metadata.signed_bytes)
        except (UnverifiedSignatureError, ValueError, SerializationError):
            continue
        return True
    return False


def _keys_of(signed: Root | Targets) -> dict[str, Key]:
    if isinstance(signed, Root):
        return signed.keys
    return signed.delegations.keys if signed.delegations is not None else {}


def _hidden(signed: Root | Targets) -> str | None:
    """What clients might act upon and a summary would not show; None when there is nothing."""
    parts: list[Root | Targets | Delegations | Role | TargetFile] = [signed]
    if isinstance(signed, Root):
        if not signed.consistent_snapshot:
            return "files without versions"
        parts += signed.roles.values()
    else:
        parts += signed.targets.values()
        if signed.delegations is not None:
            if signed.delegations.roles is None:
                return "delegations by hash bins"
            parts += [signed.delegations, *signed.delegations.roles.values()]
    for part in parts:
        known = {"custom"} if isinstance(part, TargetFile) else set()
        if unknown := part.unrecognized_fields.keys() - known:
            return f"a field {min(unknown)!r}"
        if isinstance(part, TargetFile) and not isinstance(part.custom, dict):
            return "a target without facts about it"
    return None


def _root_changes(before: Root | None, after: Root) -> list[str]:
    lines = []
    for name, role in after.roles.items():
        known = before.roles.get(name) if before is not None else None
        old = set(known.keyids) if known is not None else set()
        lines += [f"{name}: key {keyid} comes in" for keyid in sorted(set(role.keyids) - old)]
        lines += [f"{name}: key {keyid} goes out" for keyid in sorted(old - set(role.keyids))]
        if known is None or known.threshold != role.threshold:
            lines.append(f"{name}: {role.threshold} of {len(role.keyids)} keys sign")
    return lines


def _targets_changes(before: Targets | None, after: Targets) -> list[str]:
    lines = []
    old = before.targets if before is not None else {}
    for name, target in sorted(after.targets.items()):
        if old.get(name) != target:
            lines.append(f"{'CHANGES' if name in old else 'releases'} {_release(name, target)}")
    lines += [f"withdraws {name}" for name in sorted(old.keys() - after.targets.keys())]
    known, named = _delegations(before), _delegations(after)
    for name, who in sorted(named.items()):
        if known.get(name) != who:
            lines.append(f"delegates {name} to {who}")
    lines += [f"delegates {name} no more" for name in sorted(known.keys() - named.keys())]
    return lines


def _release(name: str, target: TargetFile) -> str:
    custom = target.custom or {}
    return (
        f"{name}: {custom.get('model')} version {custom.get('version')} for "
        f"{custom.get('profile')}, {target.length} bytes, sha256 {target.hashes.get('sha256')}"
    )


def _delegations(targets: Targets | None) -> dict[str, str]:
    if targets is None or targets.delegations is None:
        return {}
    return {
        name: f"{role.threshold} of {', '.join(role.keyids)}"
        f" for {', '.join(role.paths or ['every path'])}"
        for name, role in (targets.delegations.roles or {}).items()
    }


def _printable(line: str) -> str:
    """Without anything that a terminal would obey."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def read_request(path: Path) -> SigningRequest:
    """Read a request.

    Raises:
        BadRequest: the file is none.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(MAX_REQUEST_BYTES + 1)
    if len(data) > MAX_REQUEST_BYTES:
        raise BadRequest(f"{path} has more than {MAX_REQUEST_BYTES >> 20} MiB; it is no request")
    try:
        return SigningRequest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BadRequest(
            f"{path} is no signing request: {place + ': ' if place else ''}{first['msg']}"
        ) from error


def write_request(path: Path, request: SigningRequest) -> None:
    """Write a request, whole or not at all; it holds no secrets."""
    write_whole(path, request.model_dump_json(indent=1).encode(), mode=0o644)
