"""Finished work by the hash of its code, configuration and inputs: the same is done once.

A result is small JSON.  Values under keys that end in `_sha` name blobs; a result whose blobs are
gone counts as missing.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping

import rfc8785
from pydantic import JsonValue

from cloud.blobs import Blobs
from cloud.db.engine import Sessions, read_only
from cloud.db.tables import StepResult

log = logging.getLogger("skerry.jobs")

Result = dict[str, JsonValue]


class StepCache:
    """Results of steps in the database, their large parts in the blob store."""

    def __init__(
        self, sessions: Sessions, blobs: Blobs, clock: Callable[[], float] = time.time
    ) -> None:
        self._sessions = sessions
        self._readers = read_only(sessions)
        self._blobs = blobs
        self._clock = clock

    def once(
        self, step: str, inputs: Mapping[str, JsonValue], compute: Callable[[], Result]
    ) -> Result:
        """The stored result for `step` on `inputs`, or what `compute` returns, stored."""
        key = step_key(step, inputs)
        with self._readers() as session:
            row = session.get(StepResult, key)
        if row is not None and all(self._blobs.has(sha) for sha in blobs_of(row.result)):
            log.info("step.cached step=%s key=%s", step, key[:12])
            return dict(row.result)
        result = compute()
        with self._sessions.begin() as session:
            session.merge(StepResult(key=key, step=step, result=result, created_at=self._clock()))
        return result


def step_key(step: str, inputs: Mapping[str, JsonValue]) -> str:
    """SHA-256 over the step's name and the canonical JSON of its inputs."""
    content = {"step": step, "inputs": dict(inputs)}
    return hashlib.sha256(rfc8785.dumps(content)).hexdigest()  # type: ignore[arg-type]


def blobs_of(value: JsonValue, key: str = "") -> Iterator[str]:
    """Digests of all blobs that a result names."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from blobs_of(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from blobs_of(item, key)
    elif isinstance(value, str) and key.endswith("_sha"):
        yield value
