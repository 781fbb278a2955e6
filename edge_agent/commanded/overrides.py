"""Sampling overrides on the disk: which are there, and until when.

An override ends by itself: the sampler counts it down by a clock that nobody sets, and a restart
goes on with what is left by the attested time, never with more than was asked for.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from pydantic import Field, JsonValue

from edge_agent.commanded.errors import Failed
from edge_agent.disk import make_directories, write_whole
from edge_agent.sampling import Override
from edge_agent.wire.base import WireModel
from edge_agent.wire.commands import MAX_OVERRIDE_S, SamplingArguments
from edge_agent.wire.errors import WireError
from edge_agent.wire.ids import Slug

log = logging.getLogger("skerry.commands")

MAX_MODELS: Final = 64
"""Overrides that are kept at the same time."""
MAX_FILE_BYTES: Final = 64 * 1024


class Sampler(Protocol):
    """The part of `edge_agent.sampling.Sampler` that is needed."""

    def override(self, model: str, override: Override | None, for_s: float = 0.0) -> None: ...


class _Kept(WireModel):
    until: float
    for_s: float = Field(gt=0, le=MAX_OVERRIDE_S)
    uniform_rate: float | None = Field(default=None, ge=0, le=1)
    uncertain_rate: float | None = Field(default=None, ge=0, le=1)
    max_bytes_per_minute: int | None = Field(default=None, ge=0)

    def override(self) -> Override:
        return Override(self.uniform_rate, self.uncertain_rate, self.max_bytes_per_minute)


class _File(WireModel):
    models: dict[Slug, _Kept] = Field(default_factory=dict)


class Overrides:
    """See the module.  Thread-safe."""

    def __init__(self, path: Path, sampler: Sampler, now: Callable[[], float]) -> None:
        """
        Args:
            now: seconds since the epoch that have certainly passed.
        """
        self._path = path
        self._sampler = sampler
        self._now = now
        self._lock = threading.Lock()
        self._kept: dict[str, _Kept] = {}

    def restore(self) -> None:
        """Go on with what an earlier start left.  A file that makes no sense is no override."""
        try:
            data = self._path.read_bytes()
            models = _File.decode(data, limit=MAX_FILE_BYTES).models
        except FileNotFoundError:
            return
        except (OSError, WireError) as error:
            log.warning("override.dropped cause=%s", type(error).__name__)
            return
        now = self._now()
        with self._lock:
            for model, kept in models.items():
                left_s = min(kept.until - now, kept.for_s)
                if left_s > 0:
                    self._kept[model] = kept
                    self._sampler.override(model, kept.override(), left_s)

    def set(self, asked: SamplingArguments) -> dict[str, JsonValue]:
        """Begin an override, or end the one that is there; on the disk when this returns.

        Raises:
            Failed: the disk refuses, or there are too many; nothing was changed.
        """
        now = self._now()
        with self._lock:
            kept = {model: each for model, each in self._kept.items() if each.until > now}
            kept.pop(asked.model, None)
            if asked.for_s:
                if len(kept) >= MAX_MODELS:
                    raise Failed("too_many", f"{MAX_MODELS} models are overridden already")
                kept[asked.model] = _Kept(
                    until=now + asked.for_s,
                    for_s=asked.for_s,
                    uniform_rate=asked.uniform_rate,
                    uncertain_rate=asked.uncertain_rate,
                    max_bytes_per_minute=asked.max_bytes_per_minute,
                )
            try:
                make_directories(self._path.parent)
                write_whole(self._path, _File(models=kept).encode())
            except OSError as error:
                raise Failed("disk_refused", f"it cannot be remembered: {error}") from error
            self._kept = kept
            new = kept.get(asked.model)
            self._sampler.override(
                asked.model, None if new is None else new.override(), asked.for_s
            )
        return {"model": asked.model, "until": None if new is None else new.until}

    def status(self) -> dict[str, JsonValue]:
        """Overrides that hold, by model."""
        now = self._now()
        with self._lock:
            return {
                model: each.model_dump(mode="json", exclude_none=True)
                for model, each in self._kept.items()
                if each.until > now
            }
