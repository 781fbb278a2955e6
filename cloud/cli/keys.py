"""`skerry keys …`: the keys of both repositories, and the offline ceremony by files.

`sign` and `new` are for the machine that holds an offline key: they need no control plane.  All
others work on the directory of one, running or not.
"""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from securesystemslib.signer import SecretsHandler, Signer, SSlibKey

from cloud.cli.connect import DEFAULT_DIRECTORY, DirectoryOption
from cloud.cli.output import console, table, when
from cloud.errors import OperatorError, UserError
from cloud.settings import Settings
from cloud.signing import BadRotation
from cloud.signing.ceremony import (
    SigningRequest,
    apply_request,
    make_request,
    read_request,
    sign_request,
    summary_of,
    write_request,
)
from cloud.signing.key_files import write_key, write_public_key
from cloud.signing.keys import INVENTORY_NAME, ROLE_KEYS, RepositoryName, RoleName, init_keys
from cloud.signing.repository import SignedRepository
from cloud.signing.signers import SCHEMES, InventoryKey, import_key, open_signer, secrets_from
from cloud.signing.status import RepositoryStatus, status_of

if TYPE_CHECKING:
    from cloud.services import Services

keys = typer.Typer(
    no_args_is_help=True, help="Who signs releases; signatures by keys that are kept elsewhere."
)

KeyOption = Annotated[
    list[str] | None,
    typer.Option("--key", help="hsm:, awskms:, gcpkms:, azurekms: or file: URI, or a .pub file."),
]
RequestArgument = Annotated[Path, typer.Argument(help="File of 'skerry keys request'.")]


@keys.command("init")
def init(
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    key: Annotated[
        list[str] | None,
        typer.Option("--key", help="REPOSITORY/ROLE=URI in place of a key file; repeat it."),
    ] = None,
) -> None:
    """Create the keys and the first metadata of a control plane."""
    from cloud.services import initialise, passphrase_of  # not for the machine that only signs

    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    passphrase = passphrase_of(directory)
    init_keys(
        directory / "keys",
        passphrase,
        inventory=directory / "tuf" / INVENTORY_NAME,
        elsewhere=[_placed(text, secrets_from(passphrase)) for text in key or ()],
    )
    initialise(Settings(directory=directory.resolve()))
    console.print(f"keys are in {directory / 'keys'}; see 'skerry keys status'", soft_wrap=True)


@keys.command("new")
def new(
    path: Annotated[Path, typer.Argument(help="Key file to create, e.g. alice.pem")],
    p256: Annotated[bool, typer.Option("--p256", help="For OpenSSF signatures.")] = False,
) -> None:
    """Create one encrypted key file, and its public half beside it, on any machine."""
    public_path = path.with_suffix(".pub")
    if public_path.exists() or public_path == path:
        raise UserError(
            f"{public_path} is taken, or the name of a public half; choose another name"
        )
    key = write_key(
        path, _ask("passphrase", f"passphrase for {path}", confirm=True).encode(), p256=p256
    )
    write_public_key(public_path, key)
    console.print(f"key {key.keyid}", soft_wrap=True)
    console.print(f"keep {path}; give {public_path} to 'skerry keys rotate'", soft_wrap=True)


@keys.command("status")
def status(
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Who signs, where the keys are, what waits for signatures."""
    found = [status_of(repository) for repository in _repositories(_open(directory)).values()]
    if json:
        console.print_json(data=[each.model_dump(mode="json") for each in found])
        return
    _print_status(found)


@keys.command("rotate")
def rotate(
    repository: Annotated[str, typer.Argument(help="image or director")],
    role: Annotated[str, typer.Argument(help="root, targets, snapshot or timestamp")],
    out: Annotated[
        list[str] | None, typer.Option("--out", help="Only this key goes (start of its id).")
    ] = None,
    key: KeyOption = None,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Change the keys of a role; without options, all of them for new key files."""
    name, role_name = _role(f"{repository}/{role}")
    services = _open(directory)
    held = _repositories(services)[name].root().roles[role_name].keyids
    if out:
        going = [_match(start, held, f"{name} {role_name}") for start in out]
    else:
        going = [] if key else list(held)
    _rotate(services, name, role_name, going, key, new_files=len(going))


@keys.command("revoke")
def revoke(
    keyid: Annotated[str, typer.Argument(help="Start of the key's id; see 'skerry keys status'.")],
    key: KeyOption = None,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Take one key out of every role that has it.

    A role that cannot spare it gets --key, or else a new key file.
    """
    services = _open(directory)
    repositories = _repositories(services)
    held = {
        (name, role): repository.root().roles[role].keyids
        for name, repository in repositories.items()
        for role in ROLE_KEYS[name]
    }
    whole = _match(
        keyid, sorted({each for ids in held.values() for each in ids}), "the control plane"
    )
    for (name, role), keyids in held.items():
        if whole in keyids:
            threshold = repositories[name].root().roles[role].threshold
            spare = len(keyids) > threshold
            _rotate(services, name, role, [whole], key, new_files=0 if spare else 1)


@keys.command("request")
def request(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Write down everything that waits for signatures, for 'skerry keys sign' elsewhere."""
    made = make_request(_repositories(_open(directory)).values())
    write_request(output, made)
    _print_lines(made.summary)
    console.print(f"wrote {output}: {len(made.documents)} documents", soft_wrap=True)


@keys.command("sign")
def sign(
    request_file: RequestArgument,
    key: Annotated[
        list[str], typer.Option("--key", help="Key file or signer URI to sign with; repeat it.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Instead of the file itself.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before signing.")] = False,
) -> None:
    """Show what a request would release, and sign it.  Needs no control plane."""
    made = read_request(request_file)
    signers = [_signer(text) for text in key]
    _print_lines(summary_of(made, [signer.public_key for signer in signers]))
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("nobody is here to be asked; read the summary and say --yes")
        if not typer.confirm("Sign this?"):
            raise typer.Exit(1)
    signed, count = sign_request(made, signers)
    write_request(output or request_file, signed)
    console.print(f"signed {count} of {len(made.documents)} documents", soft_wrap=True)


@keys.command("apply")
def apply(
    request_files: Annotated[list[Path], typer.Argument(help="Signed requests, copies together.")],
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Verify signatures and publish what has enough of them."""
    requests: list[SigningRequest] = [read_request(path) for path in request_files]
    services = _open(directory)
    left: dict[str, list[str]] = {}
    for each in requests:
        left = apply_request(_repositories(services), each)
    _record(services, "keys.applied", "repositories", left)
    for repository in _repositories(services).values():
        for waiting in status_of(repository).waiting:
            place = f"{waiting.repository} {waiting.role}"
            console.print(f"{place} waits: {'; '.join(waiting.asked)}", soft_wrap=True)
    if not any(left.values()):
        console.print("published: nothing of it waits any more")


@keys.command("discard")
def discard(
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Give up what waits for signatures; requests made of it become worthless."""
    if not yes and not (sys.stdin.isatty() and typer.confirm("Give up all that waits?")):
        raise UserError("nothing was given up; say --yes to give up all that waits")
    services = _open(directory)
    given_up = {str(name): each.discard() for name, each in _repositories(services).items()}
    _record(services, "keys.discarded", "repositories", given_up)
    count = sum(map(len, given_up.values()))
    console.print(f"gave up {count} documents")


@keys.command("openssf")
def openssf(
    bundle: Annotated[Path, typer.Argument(help="Bundle: its file or unpacked directory.")],
    key: Annotated[Path, typer.Option("--key", help="File of 'skerry keys new --p256'.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Signature to write.")],
) -> None:
    """Put an OpenSSF model signature beside a bundle, for 'model_signing verify key'."""
    from cloud.signing.openssf import sign_bundle

    sign_bundle(bundle, key, _ask("passphrase", f"passphrase of {key}"), output)
    console.print(f"wrote {output}", soft_wrap=True)


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def _rotate(
    services: Services,
    name: RepositoryName,
    role: RoleName,
    going: Sequence[str],
    given: Sequence[str] | None,
    *,
    new_files: int,
) -> None:
    from cloud.services import passphrase_of

    repository = _repositories(services)[name]
    store = repository.keys
    secrets = secrets_from(passphrase_of(services.settings.directory))
    imported = [import_key(text, secrets, store.directory) for text in given or ()]
    known = store.files(name, role)
    created: list[SSlibKey] = []
    try:
        if not imported:
            created = [store.create(name, role) for _ in range(new_files)]
        coming = [key for _, key in imported] + created
        if not going and not coming:
            raise BadRotation(f"{name} {role}: nothing to change")
        store.inventory.add(InventoryKey.of(name, role, uri, key) for uri, key in imported)
        done = repository.rotate(role, going, coming)
    except BaseException:
        # a key that no root lists would stand in the way of the next attempt's; one that a root
        # lists already, before what broke off, is the only one of its kind
        for keyid, path in store.files(name, role).items():
            made = keyid not in known and keyid in {key.keyid for key in created}
            if made and not repository.lists(keyid):
                path.unlink()
        raise
    detail = {"out": list(going), "in": [key.keyid for key in coming], "staged": [str(not done)]}
    _record(services, "keys.rotated", f"{name}/{role}", detail)
    for keyid in going:
        console.print(f"{name} {role}: key {keyid[:12]} goes out", soft_wrap=True)
    for key in coming:
        console.print(f"{name} {role}: key {key.keyid[:12]} comes in", soft_wrap=True)
    if done:
        console.print(f"{name} root {repository.root().version} is published", soft_wrap=True)
    else:
        console.print(
            "offline keys must sign; go on with 'skerry keys request -o request.json'",
            soft_wrap=True,
        )


def _open(directory: Path) -> Services:
    from cloud.services import open_services

    return open_services(Settings(directory=directory.resolve()))


def _repositories(services: Services) -> Mapping[RepositoryName, SignedRepository]:
    return {"image": services.image_repository, "director": services.director}


def _record(
    services: Services, action: str, subject: str, detail: Mapping[str, Sequence[str]]
) -> None:
    """Write down what was done, and let the database follow the repositories."""
    from cloud.registry import audit
    from cloud.releases import settle_staged

    actor = f"cli:{getpass.getuser()}"
    with services.sessions.begin() as session:
        settle_staged(session, services.image_repository, actor)
        audit.append(session, actor, action, subject, {k: list(v) for k, v in detail.items()})


def _role(text: str) -> tuple[RepositoryName, RoleName]:
    """ "image/root" → its parts.

    Raises:
        typer.BadParameter: there is no such role.
    """
    repository, _, role = text.partition("/")
    if repository not in ROLE_KEYS:
        raise typer.BadParameter(f"no repository {repository!r}; there are {', '.join(ROLE_KEYS)}")
    name = cast("RepositoryName", repository)
    if role not in ROLE_KEYS[name]:
        roles = ", ".join(ROLE_KEYS[name])
        raise typer.BadParameter(f"{repository} has no role {role!r}; there are {roles}")
    return name, cast("RoleName", role)


def _match(start: str, keyids: Sequence[str], place: str) -> str:
    found = [keyid for keyid in keyids if keyid.startswith(start.lower())] if start else []
    if len(found) != 1:
        kind = "several keys" if found else "no key"
        raise UserError(f"{place} has {kind} {start!r}; 'skerry keys status --json' has whole ids")
    return found[0]


def _placed(text: str, secrets: SecretsHandler) -> InventoryKey:
    place, separator, uri = text.partition("=")
    if not separator:
        raise typer.BadParameter(f"{text!r} is not REPOSITORY/ROLE=URI")
    name, role = _role(place)
    uri, key = import_key(uri, secrets)
    if not uri:
        raise typer.BadParameter(f"{text!r}: the first root is signed here; name a signer URI")
    return InventoryKey.of(name, role, uri, key)


def _signer(text: str) -> Signer:
    """The signer that `--key` names on the machine of the key."""
    uri = text if text.partition(":")[0] in SCHEMES else f"file:{Path(text).resolve()}"
    secrets: Callable[[str], str] = lambda name: _ask(name, f"{name} of {text}")  # noqa: E731
    asked: dict[str, str] = {}

    def once(name: str) -> str:
        if name not in asked:
            asked[name] = secrets(name)
        return asked[name]

    uri, key = import_key(uri, once, Path.cwd())
    return open_signer(uri, key, once, Path.cwd())


def _ask(name: str, prompt: str, *, confirm: bool = False) -> str:
    """A secret: from SKERRY_PASSPHRASE or SKERRY_HSM_PIN, else from the terminal.

    Raises:
        OperatorError: there is neither.
    """
    variable = "SKERRY_PASSPHRASE" if name == "passphrase" else "SKERRY_HSM_PIN"
    if given := os.environ.get(variable):
        return given
    if not sys.stdin.isatty():
        raise OperatorError(f"no terminal to ask for the {prompt}: set {variable}")
    return str(typer.prompt(prompt, hide_input=True, confirmation_prompt=confirm, err=True))


def _print_lines(lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_status(found: Sequence[RepositoryStatus]) -> None:
    for each in found:
        table(
            f"{each.repository}: root {each.root_version}, until {when(each.root_expires_at)}",
            ("key", "role", "must sign", "where"),
            [
                (key.keyid[:16], role.role, f"{role.threshold} of {len(role.keys)}",
                 key.place or "elsewhere")
                for role in each.roles
                for key in role.keys
            ],
        )  # fmt: skip
    waiting = [(each, waits) for each in found for waits in each.waiting]
    table(
        "waiting for signatures",
        ("document", "version", "has"),
        [(f"{w.repository} {w.role}", w.version, "; ".join(w.asked)) for _, w in waiting],
    )
    _print_lines([line for each in found for line in each.advice])
