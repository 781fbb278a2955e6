"""How the child process of a search reaches the lab: an address in its request, a token in a file.

The token never stands in the request, which is kept beside the search's files, and its file is
for the owner alone.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.disk import write_whole
from fleet.client.client import Client
from fleet.client.errors import ApiError

if TYPE_CHECKING:
    from optimizer.timing import Measurer

Json = dict[str, Any]


@dataclass(frozen=True)
class ControlPlane:
    """Where a control plane is, and who asks.

    Attributes:
        authority: certificate of its own authority, where no system knows it; None otherwise.
    """

    url: str
    token: str
    authority: Path | None = None

    def client(self) -> Client:
        """A client to it; the caller closes it."""
        verify: ssl.SSLContext | bool = True
        if self.authority is not None:
            verify = ssl.create_default_context()
            verify.load_verify_locations(self.authority)
        return Client(self.url, self.token, verify=verify)


def lab_request(plane: ControlPlane, on: str, token_path: Path) -> Json:
    """The part of a search's request that names the lab; writes the token to `token_path`.

    Args:
        on: "device:ID" or "group:NAME".
    """
    write_whole(token_path, plane.token.encode())
    return {
        "on": on,
        "url": plane.url,
        "token": str(token_path),
        "authority": None if plane.authority is None else str(plane.authority),
    }


@contextmanager
def measurer_of(request: Json) -> Iterator[Measurer]:
    """The measurer that `lab_request` described.

    Raises:
        LabUnreachable: the selection is wrong, or the control plane does not answer.
        CannotMeasure: none of the devices can measure now.
    """
    # with all that measures, which a client needs not
    from cloud.lab.choosing import measurer_on
    from cloud.lab.errors import LabUnreachable

    authority = request["authority"]
    plane = ControlPlane(
        url=str(request["url"]),
        token=Path(request["token"]).read_text().strip(),
        authority=None if authority is None else Path(authority),
    )
    with plane.client() as client:
        try:
            measurer = measurer_on(client, str(request["on"]))
        except ApiError as error:
            raise LabUnreachable(str(error)) from error
        yield measurer
