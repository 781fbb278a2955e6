"""The sampler: observes predictions, keeps some, and takes corrections.

`observe` runs on the thread that answers; it draws, copies what it keeps, and hands it over.  One
thread applies the privacy hooks, encodes, and journals.
"""

from __future__ import annotations

import logging
import os
import queue
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from edge_agent.runtime import Tensors
from edge_agent.sampling.budget import ByteBudget
from edge_agent.sampling.items import (
    MAX_ID,
    Item,
    NotSampleable,
    Observed,
    Ring,
    content_bytes,
    encode_sample,
    item_bytes,
    item_of,
    tensor_specs,
)
from edge_agent.sampling.policy import Decision, Kept
from edge_agent.sampling.privacy import Privacy, PrivacyError
from edge_agent.wire.manifest import Manifest, SamplingSpec
from edge_agent.wire.messages import Correction
from edge_agent.wire.samples import MAX_SAMPLE_BYTES, Policy, SampleHeader
from edge_agent.wire.topics import UplinkKind

log = logging.getLogger("skerry.sampling")

QUEUED_ITEMS: Final = 256
QUEUED_BYTES: Final = 8 << 20
RING_BYTES: Final = 2 << 20
_PREPARED: Final = 4
"""Versions of a model kept prepared: the one that serves, the one before, the one that is tried
beside it, and the one to come."""
MAX_BATCH_ITEMS: Final = 64
"""Items of one request that are looked at; the rest of a larger batch is not sampled."""

_MAX_BATCH_ID: Final = MAX_ID - len(f".{MAX_BATCH_ITEMS - 1}")

_MAX_RAW_BYTES: Final = 8 * MAX_SAMPLE_BYTES
"""Larger items are taken to exceed `MAX_SAMPLE_BYTES` however they compress; not where hooks may
make them smaller."""
_MAX_HOOKED_BYTES: Final = QUEUED_BYTES // 4


class Journal(Protocol):
    """Where samples and corrections go: `edge_agent.link.outbox.Outbox`."""

    @property
    def used_bytes(self) -> int: ...

    def append(self, kind: UplinkKind, payload: bytes) -> int: ...


@dataclass(slots=True)
class _Version:
    """What belongs to one model version.

    Attributes:
        budget: of the manifest; it is never refilled by an override.
        narrow: of the override that holds now.
        privacy: None until it was prepared, or until the first sample of one that was not.
    """

    manifest: Manifest
    decision: Decision
    budget: ByteBudget
    narrow: ByteBudget | None = None
    privacy: Privacy | None = None
    broken: bool = False
    warned: bool = False

    def exhausted(self, policy: Policy) -> bool:
        narrow = self.narrow
        return self.budget.exhausted(policy) or (narrow is not None and narrow.exhausted(policy))

    def take(self, policy: Policy, length: int) -> bool:
        """Pay from every budget that holds."""
        narrow = self.narrow
        return (narrow is None or narrow.take(policy, length)) and self.budget.take(policy, length)


@dataclass(frozen=True, slots=True)
class Override:
    """Sample a model otherwise for some time; None leaves what the manifest says.

    The manifest's budget, spool and privacy hooks hold beside it, so it can take less of the line
    than the manifest allows, never more.

    Attributes:
        uniform_rate, uncertain_rate: see `SamplingSpec`.
        max_bytes_per_minute: a budget of its own, beside the manifest's.
    """

    uniform_rate: float | None = None
    uncertain_rate: float | None = None
    max_bytes_per_minute: int | None = None

    def rates(self, spec: SamplingSpec) -> SamplingSpec:
        """`spec` with these rates."""
        return SamplingSpec(
            uniform_rate=spec.uniform_rate if self.uniform_rate is None else self.uniform_rate,
            uncertain_rate=(
                spec.uncertain_rate if self.uncertain_rate is None else self.uncertain_rate
            ),
            max_bytes_per_minute=spec.max_bytes_per_minute,
            max_spool_bytes=spec.max_spool_bytes,
        )


@dataclass(frozen=True, slots=True)
class _Overriding:
    override: Override
    until: float  # monotonic


@dataclass(frozen=True, slots=True)
class _Work:
    version: _Version
    item: Item
    kept: Kept
    length: int
    label: str | None = None


class Sampler:
    """See the module.  `observe` and `correct` may be called from several threads."""

    def __init__(
        self,
        journal: Journal,
        *,
        key: bytes,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        ring_bytes: int = RING_BYTES,
    ) -> None:
        """Start the writing thread.

        Args:
            key: secret of the device, for keyed pseudonyms.
            rng: decides which items are kept.
            clock: seconds since the epoch.
            monotonic: seconds, for the budgets.
            ring_bytes: bound of what is remembered for corrections.
        """
        self._journal = journal
        self._key = key
        self._rng = rng or random.Random()
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._ring = Ring(ring_bytes)
        self._versions: dict[str, _Version] = {}
        self._prepared: dict[str, deque[_Version]] = {}
        self._corrections: Counter[tuple[str, int]] = Counter()
        self._overriding: dict[str, _Overriding] = {}
        self._queue: queue.Queue[_Work | None] = queue.Queue(QUEUED_ITEMS)
        self._queued_bytes = 0
        self.counts: Counter[str] = Counter()
        """Kept items by outcome: journalled, over_budget, spool_full, queue_full, too_large,
        refused."""
        self._thread = threading.Thread(target=self._write, name="sampler", daemon=True)
        self._thread.start()

    def prepare(self, manifest: Manifest) -> None:
        """Look the privacy hooks of a version up; after its code was loaded, before it is served.

        Hooks of all bundles share their names, and the newest registration counts: later another
        bundle's code may have taken the name of one of these.  So a version that comes back without
        being loaded anew keeps what was looked up for it.
        """
        with self._lock:
            prepared = self._prepared.setdefault(manifest.model, deque(maxlen=_PREPARED))
            for known in prepared:
                if known.manifest is manifest:
                    prepared.remove(known)
                    prepared.append(known)
                    return
        version = self._new_version(manifest)
        try:
            version.privacy = Privacy(manifest.privacy, self._key)
        except PrivacyError as error:
            version.broken = version.warned = True
            log.warning("sample.refused model=%s cause=%s", manifest.model, error)
        with self._lock:
            if manifest.model in self._overriding:
                self._arrange(version)
            prepared.append(version)

    def override(self, model: str, override: Override | None, for_s: float = 0.0) -> None:
        """Sample `model` otherwise for `for_s` seconds, in whatever version; None ends it now."""
        with self._lock:
            if override is None or for_s <= 0:
                self._overriding.pop(model, None)
            else:
                self._overriding[model] = _Overriding(override, self._monotonic() + for_s)
            self._decide_anew(model)

    def _end_overrides(self) -> None:
        """Fall back to the manifests where the time is over; under the lock."""
        now = self._monotonic()
        for model in [model for model, each in self._overriding.items() if now >= each.until]:
            del self._overriding[model]
            self._decide_anew(model)
            log.info("sampling.override_ended model=%s", model)

    def _decide_anew(self, model: str) -> None:
        serving = self._versions.get(model)
        known = [*self._prepared.get(model, ()), *([] if serving is None else [serving])]
        for version in known:
            self._arrange(version)

    def _arrange(self, version: _Version) -> None:
        """Decide for a version by its manifest and the override that holds; under the lock."""
        spec = version.manifest.sampling
        held = self._overriding.get(version.manifest.model)
        version.narrow = None
        if held is not None:
            limit = held.override.max_bytes_per_minute
            if limit is not None and limit < spec.max_bytes_per_minute:
                version.narrow = ByteBudget(limit, self._monotonic)
            spec = held.override.rates(spec)
        version.decision = Decision(spec, self._rng)

    def stop(self) -> None:
        """Journal what was kept, and end."""
        self._queue.put(None)
        self._thread.join(10)

    # ── on the answering thread ──────────────────────────────────────────────────────────────────

    def observe(self, predictions: Sequence[Observed]) -> None:
        """Look at the predictions of a batch, all of one version.

        Cheap, and never raises for what a client sent.
        """
        at = self._clock()
        with self._lock:
            if self._overriding:
                self._end_overrides()
            self._ring.add(predictions, at)
            version = self._version(predictions[0].manifest)
            count = 0
            for prediction in predictions:
                count += _eligible(prediction)
            if version.decision.skip(count):
                return
            for prediction in predictions:
                self._look_at(version, prediction, at)

    def _look_at(self, version: _Version, prediction: Observed, at: float) -> None:
        count = prediction.items
        for index in range(_eligible(prediction)):
            kept = version.decision.decide(prediction.outputs, index)
            if kept is None:
                continue
            length = item_bytes(prediction, index)
            hooked = bool(version.manifest.privacy)
            if length > (_MAX_HOOKED_BYTES if hooked else _MAX_RAW_BYTES):
                self.counts["too_large"] += 1
            elif version.exhausted(kept.policy):
                self.counts["over_budget"] += 1
            elif self._queued_bytes + length > QUEUED_BYTES:
                self.counts["queue_full"] += 1
            else:
                item = item_of(prediction, index, count, at)
                self._hand_over(_Work(version, item, kept, length))

    def _version(self, manifest: Manifest) -> _Version:
        known = self._known(manifest)
        if known is None:
            known = self._new_version(manifest)
            if manifest.model in self._overriding:
                self._arrange(known)
        self._versions[manifest.model] = known
        return known

    def _known(self, manifest: Manifest) -> _Version | None:
        """What belongs to a version that serves or is prepared."""
        known = self._versions.get(manifest.model)
        if known is not None and known.manifest is manifest:
            return known
        prepared = self._prepared.get(manifest.model, ())
        return next((each for each in prepared if each.manifest is manifest), None)

    def _new_version(self, manifest: Manifest) -> _Version:
        return _Version(
            manifest,
            Decision(manifest.sampling, self._rng),
            ByteBudget(manifest.sampling.max_bytes_per_minute, self._monotonic),
        )

    def _hand_over(self, work: _Work) -> None:
        """Leave the rest to the writing thread; under the lock."""
        if self._queued_bytes + work.length > QUEUED_BYTES:
            self.counts["queue_full"] += 1
            return
        try:
            self._queue.put_nowait(work)
        except queue.Full:
            self.counts["queue_full"] += 1
        else:
            self._queued_bytes += work.length

    # ── corrections ──────────────────────────────────────────────────────────────────────────────

    def correct(self, model: str, prediction_id: str, label: str) -> bool:
        """Take a person's word on a prediction; whether it is still remembered.

        The correction is on the disk when this returns; a sample of the input follows.

        Args:
            label: name of the right class, one of the model's labels where it has any.

        Raises:
            LinkError: the journal refuses.
        """
        if len(prediction_id) > MAX_ID:
            return False
        with self._lock:
            item = self._ring.get(model, prediction_id)
        if item is None or (item.manifest.labels and label not in item.manifest.labels):
            return False
        correction = Correction(
            model=model,
            version=item.manifest.version,
            prediction_id=prediction_id,
            predicted=item.predicted,
            label=label,
            at=self._clock(),
        )
        self._journal.append("correction", correction.encode())
        with self._lock:
            self._corrections[model, item.manifest.version] += 1
            version = self._known(item.manifest)
            if item.tensors and version is not None:
                length = content_bytes(item.tensors)
                self._hand_over(_Work(version, item, Kept("event", 1.0), length, label))
        return True

    def take_corrections(self, model: str, version: int) -> int:
        """Corrections of a version since this was last asked."""
        with self._lock:
            return self._corrections.pop((model, version), 0)

    # ── on the writing thread ────────────────────────────────────────────────────────────────────

    def _write(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                outcome = self._journal_item(work)
            except Exception:
                # nothing that a sample does may end sampling; the next one may be fine
                log.exception("sample.failed model=%s", work.item.manifest.model)
                outcome = "refused"
            with self._lock:
                self.counts[outcome] += 1
                self._queued_bytes -= work.length

    def _journal_item(self, work: _Work) -> str:
        version, item = work.version, work.item
        spec = item.manifest.sampling
        if version.broken:
            return "refused"
        if self._journal.used_bytes > spec.max_spool_bytes:
            return "spool_full"
        try:
            if version.privacy is None:
                version.privacy = Privacy(item.manifest.privacy, self._key)
            tensors = version.privacy.apply(item.tensors)
            payload = self._encode(work, tensors, version.privacy.digest)
        except (PrivacyError, NotSampleable) as error:
            if version.privacy is None:
                version.broken = True  # the manifest will not change
            if not version.warned:
                version.warned = True
                log.warning("sample.refused model=%s cause=%s", item.manifest.model, error)
            return "refused"
        if not version.take(work.kept.policy, len(payload)):
            return "over_budget"
        self._journal.append("sample", payload)
        return "journalled"

    def _encode(self, work: _Work, tensors: Tensors, privacy: str) -> bytes:
        item = work.item
        header = SampleHeader(
            sample_id=os.urandom(16).hex(),
            prediction_id=item.prediction_id,
            model=item.manifest.model,
            version=item.manifest.version,
            policy=work.kept.policy,
            inclusion_prob=work.kept.inclusion_prob,
            taken_at=item.at,
            tensors=tensor_specs(tensors),
            predicted=item.predicted,
            scores=() if item.scores is None else tuple(float(s) for s in item.scores),
            label=work.label,
            privacy=privacy,
        )
        return encode_sample(header, tensors)


def _eligible(prediction: Observed) -> int:
    """Items of a prediction that may become samples: the first ones, if their ids fit."""
    items, length = prediction.items, len(prediction.prediction_id)
    if items == 1:
        return 1 if 0 < length <= MAX_ID else 0
    return min(items, MAX_BATCH_ITEMS) if 0 < length <= _MAX_BATCH_ID else 0
