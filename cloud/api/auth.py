"""Who calls, and what the role allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, HTTPException, Request

from cloud.api.context import Context, ContextDep
from cloud.services import find_token
from fleet.client.schemas import Role

_RANK: Final[dict[str, int]] = {"viewer": 0, "operator": 1, "admin": 2}
_CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}


@dataclass(frozen=True)
class Caller:
    """An authenticated caller; `name` goes into the audit."""

    name: str
    role: Role


def _caller(request: Request, context: Context) -> Caller:
    header = request.headers.get("authorization", "")
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise HTTPException(401, "no token: send 'Authorization: Bearer TOKEN'", _CHALLENGE)
    with context.readers() as session:
        row = find_token(session, token.strip())
    if row is None:
        raise HTTPException(401, "unknown or revoked token", _CHALLENGE)
    return Caller(row.name, "admin" if row.role == "admin" else _narrow(row.role))


def _narrow(role: str) -> Role:
    return "operator" if role == "operator" else "viewer"


def may(caller: Caller, role: Role) -> str:
    """Why the caller's role does not suffice; empty when it does."""
    if _RANK[caller.role] < _RANK[role]:
        return f"role {caller.role} may not do this; it takes {role}"
    return ""


def require(role: Role) -> Callable[[Request, Context], Caller]:
    """Dependency: the caller must have at least `role`."""

    def check(request: Request, context: ContextDep) -> Caller:
        caller = _caller(request, context)
        refusal = may(caller, role)
        if refusal:
            asked = f"{request.method} {request.url.path}"[:200]
            context.denials.record(context.writers, caller.name, asked, refusal)
            raise HTTPException(403, refusal)
        return caller

    return check


Viewer = Annotated[Caller, Depends(require("viewer"))]
Operator = Annotated[Caller, Depends(require("operator"))]
Admin = Annotated[Caller, Depends(require("admin"))]
