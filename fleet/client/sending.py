"""What both clients share when they send a call: address, headers, body, and the missing answer."""

from __future__ import annotations

from typing import Any

import httpx

from fleet.client.calls import Call
from fleet.client.errors import Unreachable


def base_address(base_url: str) -> httpx.URL:
    """Check an address.

    Raises:
        Unreachable: it is not an http address.
    """
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise Unreachable(f"{base_url!r} is not an address: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise Unreachable(f"{base_url!r} is not an address; it looks like http://HOST:PORT")
    return url


def headers(token: str) -> dict[str, str]:
    """The headers that every request carries."""
    if not token:
        return {}
    if not token.isascii() or not token.isprintable() or " " in token:
        return {"Authorization": "Bearer not-a-token"}  # a header cannot carry it: refused by 401
    return {"Authorization": f"Bearer {token}"}


def arguments(call: Call[Any]) -> dict[str, Any]:
    """Keyword arguments of httpx for a call, beside method and path."""
    found: dict[str, Any] = {"params": call.params, "timeout": call.timeout_s}
    if call.body is not None:
        found["content"] = call.body.model_dump_json()
        found["headers"] = {"Content-Type": "application/json"}
    elif call.content is not None:
        found["content"] = call.content
        found["headers"] = {"Content-Type": "application/x-tar"}
    return found


def unreachable(url: httpx.URL, error: httpx.HTTPError) -> Unreachable:
    """What to raise where no answer came."""
    if isinstance(error, httpx.TimeoutException):
        return Unreachable(f"the control plane at {url} did not answer in time")
    return Unreachable(f"no control plane answers at {url}; is it running? ({error})")
