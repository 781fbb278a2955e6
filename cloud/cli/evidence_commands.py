"""`skerry rollout verify`: is the evidence of a rollout's gates what was signed?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from securesystemslib.signer import Key

from cloud.cli.connect import DEFAULT_DIRECTORY, DirectoryOption, client
from cloud.cli.options import JsonOption
from cloud.cli.output import as_json, console, table, when
from cloud.errors import OperatorError
from cloud.orchestrator.evidence import verify
from cloud.signing.evidence import evidence_keys
from cloud.signing.key_files import read_public_key


def verify_rollout(
    rollout_id: str,
    key: Annotated[
        list[Path] | None, typer.Option(help="Trusted public key; repeat for earlier ones.")
    ] = None,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    json: JsonOption = False,
) -> None:
    """Verify chain and signatures of all gate decisions, here, with keys that you have."""
    if key:
        named = [read_public_key(path) for path in key]
        trusted: dict[str, Key] = {each.keyid: each for each in named}
    else:
        trusted = evidence_keys(directory / "evidence")
    if not trusted:
        raise OperatorError(
            f"no public key in {directory / 'evidence'}; name one with --key "
            "(it is evidence/KEYID.pub of the control plane's directory)"
        )
    with client(directory) as api:
        found = api.rollout_evidence(rollout_id)
    signed = verify(found, trusted)
    if json:
        as_json(found)
        return
    table(
        "decisions",
        ("at", "subject", "gate", "verdict", "reason", "sha256"),
        [
            (when(d.at), d.subject, d.gate, d.verdict, d.reason, d.sha256[:12])
            for d in found.decisions
        ],
    )
    unsigned = len(found.decisions) - signed
    console.print(
        f"rollout {rollout_id}: {signed} decisions, all signed and in their order"
        + (f"; {unsigned} of before decisions were signed" if unsigned else "")
    )
