"""Privacy hooks: what is taken out of a sample before it touches the disk.

    @privacy_hook("blur")
    def blur(tensors: Tensors, *, tensor: str, radius: int) -> Tensors: ...

A hook gets the tensors of one item and returns those that may be kept; it never changes the arrays
it was given.  One with a keyword `key` gets the device's own secret.  Hooks of a project are
registered by the Python files of its bundle and are looked up right after those were loaded.
"""

from __future__ import annotations

import hashlib
import hmac
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol

import numpy as np

from edge_agent.runtime import Array, Tensors
from edge_agent.wire.manifest import StepSpec


class PrivacyError(Exception):
    """A hook cannot be applied; the sample is not kept.

    PrivacyError
    └── UnknownHook   no hook has this name
    """


class UnknownHook(PrivacyError):
    """No hook has this name."""


class Hook(Protocol):
    """See the module."""

    def __call__(self, tensors: Tensors, /, **config: object) -> Tensors: ...


_HOOKS: dict[str, Callable[..., Tensors]] = {}


def privacy_hook(
    name: str,
) -> Callable[[Callable[..., Tensors]], Callable[..., Tensors]]:
    """Register a hook; a newer registration of the same name replaces the older one."""

    def register(function: Callable[..., Tensors]) -> Callable[..., Tensors]:
        _HOOKS[name] = function
        return function

    return register


@dataclass(frozen=True, slots=True)
class _Step:
    name: str
    call: Callable[..., Tensors]
    config: dict[str, object]


class Privacy:
    """The hooks of one model version, resolved."""

    def __init__(self, specs: Sequence[StepSpec], key: bytes) -> None:
        """Look all hooks up.

        Args:
            key: secret of the device, for keyed pseudonyms.

        Raises:
            UnknownHook: there is none of that name.
            PrivacyError: a hook does not take the configuration.
        """
        self._steps = [_resolve(spec, key) for spec in specs]
        self.digest = _digest(specs, self._steps) if specs else ""

    def apply(self, tensors: Tensors) -> Tensors:
        """What may be kept of `tensors`, after all hooks in order.

        Raises:
            PrivacyError: a hook failed, or returned no tensors.
        """
        kept = dict(tensors)
        for step in self._steps:
            try:
                kept = step.call(kept, **step.config)
            except Exception as error:
                raise PrivacyError(f"hook {step.name!r}: {type(error).__name__}") from error
            if not isinstance(kept, dict):
                raise PrivacyError(f"hook {step.name!r} returned no tensors")
        return kept


def _resolve(spec: StepSpec, key: bytes) -> _Step:
    function = _HOOKS.get(spec.name)
    if function is None:
        close = get_close_matches(spec.name, _HOOKS, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UnknownHook(f"no privacy hook {spec.name!r}{hint}")
    config: dict[str, object] = dict(spec.config)
    signature = inspect.signature(function)
    if "key" in config:
        raise PrivacyError(f"hook {spec.name!r}: the key is the device's and is not configured")
    if "key" in signature.parameters:
        config["key"] = key
    try:
        signature.bind({}, **config)
    except TypeError as error:
        raise PrivacyError(f"hook {spec.name!r}: {error}") from error
    return _Step(spec.name, function, config)


def _digest(specs: Sequence[StepSpec], steps: Sequence[_Step]) -> str:
    """Digest over names, configurations and code, in order; the key is not part of it."""
    parts = [
        {"name": spec.name, "config": spec.config, "code": _code_digest(step.call)}
        for spec, step in zip(specs, steps, strict=True)
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _code_digest(function: Callable[..., Tensors]) -> str:
    try:
        source = inspect.getsource(function).encode()
    except (OSError, TypeError):
        source = getattr(function, "__code__", function).__class__.__name__.encode()
    return hashlib.sha256(source).hexdigest()


# ── built-in hooks ───────────────────────────────────────────────────────────────────────────────


@privacy_hook("drop_tensor")
def drop_tensor(tensors: Tensors, *, tensor: str) -> Tensors:
    """Leave `tensor` out."""
    _require(tensors, tensor)
    return {name: array for name, array in tensors.items() if name != tensor}


@privacy_hook("round")
def round_values(tensors: Tensors, *, tensor: str, decimals: int = 0) -> Tensors:
    """Round `tensor` to `decimals` places."""
    return {**tensors, tensor: np.round(_require(tensors, tensor), decimals)}


@privacy_hook("mask")
def mask(tensors: Tensors, *, tensor: str, start: list[int], stop: list[int]) -> Tensors:
    """Set a box of `tensor` to zero; `start` and `stop` are indexes behind the batch axis."""
    array = _require(tensors, tensor).copy()
    if len(start) != len(stop) or not 0 < len(start) < array.ndim:
        raise ValueError("start and stop need one index for each of the first axes")
    box = (slice(None), *(slice(a, b) for a, b in zip(start, stop, strict=True)))
    array[box] = 0
    return {**tensors, tensor: array}


@privacy_hook("pseudonym")
def pseudonym(tensors: Tensors, *, tensor: str, key: bytes) -> Tensors:
    """Replace each number of an integer tensor by a keyed pseudonym (INT64).

    The same number gives the same pseudonym on this device, and another one on any other.
    """
    array = _require(tensors, tensor)
    if array.dtype.kind not in "iu":
        raise ValueError("pseudonyms are for integer tensors")
    flat = [
        int.from_bytes(hmac.digest(key, str(int(value)).encode(), "sha256")[:8], "little") >> 1
        for value in array.reshape(-1)
    ]
    return {**tensors, tensor: np.array(flat, np.int64).reshape(array.shape)}


def _require(tensors: Tensors, name: str) -> Array:
    if name not in tensors:
        raise KeyError(f"no tensor {name!r}")
    return tensors[name]
