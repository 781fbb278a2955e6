"""Where the control plane is, and the client to it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated

import typer

from cloud.errors import OperatorError
from cloud.lab.access import ControlPlane
from fleet.client.client import Client

DirectoryOption = Annotated[
    Path,
    typer.Option("--dir", envvar="SKERRY_DIRECTORY", help="Directory of the control plane."),
]
DEFAULT_DIRECTORY = Path("skerry-data")


def client(directory: Path) -> Client:
    """Client of the control plane: SKERRY_URL and SKERRY_TOKEN, else the one in `directory`.

    Raises:
        OperatorError: neither is there.
    """
    return control_plane(directory).client()


def control_plane(directory: Path) -> ControlPlane:
    """Where the control plane is: SKERRY_URL and SKERRY_TOKEN, else the one in `directory`.

    Raises:
        OperatorError: neither is there.
    """
    url, token = os.environ.get("SKERRY_URL"), os.environ.get("SKERRY_TOKEN")
    if url and token:
        return ControlPlane(url, token)
    about = directory / "control-plane.json"
    if not about.exists():
        raise OperatorError(
            f"no control plane in {directory}; start one with 'skerry up --dir {directory}', "
            "or set SKERRY_URL and SKERRY_TOKEN"
        )
    address = url or str(json.loads(about.read_text())["url"])
    authority = directory / "pki" / "ca.pem"
    # its certificate is of its own authority, which no system knows
    own = address.startswith("https:") and authority.exists()
    return ControlPlane(
        address,
        token or (directory / "tokens" / "admin").read_text().strip(),
        authority.resolve() if own else None,
    )


def split_version(text: str) -> tuple[str, int]:
    """ "digits:2" → ("digits", 2).

    Raises:
        typer.BadParameter: not MODEL:VERSION.
    """
    model, separator, version = text.rpartition(":")
    if not separator or not re.fullmatch("[0-9]{1,10}", version):
        raise typer.BadParameter(f"{text!r} is not MODEL:VERSION, e.g. digits:1")
    return model, int(version)
