"""One thread that carries out measure orders, one at a time.

verify → fetch → unpack → measure in a subprocess → sign → answer; see the package for the rules.

Rules:
    * An order is journalled before anything is done for it, its answer before it is sent.
    * A newer order, or an empty one, ends the one under way, which is answered as aborted.
    * What the agent's end interrupts is answered as aborted at its next start.
    * Whatever raises here ends in an answer or a line in the log, never in a dead thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from edge_agent.lab import child
from edge_agent.lab.fetching import Fetcher, require_room
from edge_agent.lab.journal import LabJournal
from edge_agent.update.confined import run_confined
from edge_agent.update.errors import (
    Failed,
    Interrupted,
    NotAssigned,
    NotYet,
    Refused,
    UpdateError,
    WrongProfile,
)
from edge_agent.update.ports import ChunkPort, Clock, Fetch
from edge_agent.update.rules import Candidate
from edge_agent.update.transfer import Pace, Transfer
from edge_agent.update.trust import Trust
from edge_agent.wire.base import describe, pack_frame
from edge_agent.wire.errors import WireError
from edge_agent.wire.lab import (
    MAX_ORDER_BYTES,
    MAX_ORDER_S,
    SIGNED_PREFIX,
    MeasureHeader,
    MeasureOrder,
    MeasureResult,
    MeasureState,
)
from edge_agent.wire.messages import Inventory

log = logging.getLogger("skerry.lab")

RETRY_PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Pauses between attempts to verify and fetch; the last one repeats."""
UNKNOWN_ORDER_TRIES: Final = 3
"""How often an order that the director does not name is looked for: it signs before it sends."""
MAX_DETAIL_CHARS: Final = 500


class Lab:
    """See the module.  `submit` and `stop` from any thread."""

    def __init__(
        self,
        directory: Path,
        *,
        device_id: str,
        profile: str,
        enabled: bool,
        open_trust: Callable[[], Trust],
        fetch: Fetch,
        chunks: ChunkPort,
        send: Callable[[bytes], object],
        sign: Callable[[bytes], bytes],
        served: Callable[[], int],
        inventory: Callable[[], Inventory],
        agent_version: str,
        quota_mib: int,
        memory_mib: int,
        unpack_mib: int,
        pace: Pace,
        clock: Clock = time.time,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        """Nothing is opened before the first order, or the start of a lab device.

        Args:
            directory: for the journal, the trust and what is measured; made when needed.
            enabled: whether the operator lets this device measure.
            open_trust: the device's view of both repositories, apart from the updater's.
            send: journals an answer for the control plane.
            sign: signs bytes with the device's key.
            served: predictions answered since the last call.
            unpack_mib: what decoding a bundle may use.
            clock: seconds since the epoch.
            wait: pauses for some seconds, True when stopping.
        """
        self._directory = directory
        self._device_id = device_id
        self._profile = profile
        self._enabled = enabled
        self._open_trust = open_trust
        self._fetch = fetch
        self._chunks = chunks
        self._send = send
        self._sign = sign
        self._served = served
        self._inventory = inventory
        self._agent_version = agent_version
        self._quota_bytes = quota_mib << 20
        self._memory_mib = memory_mib
        self._unpack_bytes = unpack_mib << 20
        self._pace = pace
        self._clock = clock
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._wait = wait or self._stopping.wait
        self._newest: bytes | None = None
        self._opened: LabJournal | None = None

    # ── from other threads ───────────────────────────────────────────────────────────────────────

    def submit(self, payload: bytes) -> None:
        """Take the newest retained message of the topic; empty ends what is under way."""
        with self._lock:
            self._newest = payload
        self._woken.set()

    def stop(self) -> None:
        """End `run` soon, and a measurement with it."""
        self._stopping.set()
        self._woken.set()

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def run(self) -> None:
        """Body of the thread, until `stop`."""
        try:
            self.recover()
        except Exception:
            log.exception("lab.not_recovered")
        while not self._stopping.is_set():
            self._woken.wait()
            self._woken.clear()
            with self._lock:
                payload = self._newest
            if not payload or self._stopping.is_set():
                continue
            try:
                self.handle(payload)
            except Exception:
                # the disk refuses, most likely; the order runs out at the control plane
                log.exception("lab.failed_unexpectedly")

    # ── one order ────────────────────────────────────────────────────────────────────────────────

    def recover(self) -> None:
        """Answer what the last end of the agent interrupted, and send what was not sent."""
        shutil.rmtree(self._work, ignore_errors=True)
        if self._opened is None and not self._journal_path.exists():
            return
        for begun in self._journal.interrupted():
            result = MeasureResult(
                order=begun.id,
                order_sha256=begun.sha256,
                device=self._device_id,
                state="aborted",
                reason="restarted",
                detail="the device was restarted while it measured",
                ended_at=self._clock(),
            )
            self._answer(result)
        self._send_unsent()

    def handle(self, payload: bytes) -> None:
        """Carry out the order in `payload` and answer it; one that was begun before is not again.

        Raises:
            sqlite3.Error, OSError: the disk refused to remember it; nothing was answered.
        """
        try:
            order = MeasureOrder.decode(payload, limit=MAX_ORDER_BYTES)
        except WireError as error:
            log.warning("lab.order_dropped cause=%s", error)
            return
        if order.device != self._device_id:
            log.warning("lab.order_dropped device=%s cause=foreign", order.device)
            return
        order_sha256 = hashlib.sha256(payload).hexdigest()
        if not self._journal.begin(order.id, order_sha256):
            self._send_unsent()
            return
        log.info("lab.begun order=%s candidate=%s", order.id, order.candidate.target)
        result = self._result(order, order_sha256, payload)
        if result is not None:
            self._answer(result)
            log.info("lab.ended order=%s state=%s detail=%s", order.id, result.state, result.detail)

    def _result(
        self, order: MeasureOrder, order_sha256: str, payload: bytes
    ) -> MeasureResult | None:
        """How the order ends; None when the agent's end interrupts it."""
        started_at = self._clock()
        found: dict[str, Any] = {}
        state: MeasureState = "done"
        reason = ""
        try:
            found = self._carry_out(order, order_sha256, payload)
        except Interrupted:
            if self._stopping.is_set():
                return None
            state, reason, found["detail"] = "aborted", "cancelled", "the order was taken back"
        except Refused as error:
            state, reason, found["detail"] = "refused", error.reason, str(error)
        except UpdateError as error:
            state, reason, found["detail"] = "failed", error.reason, str(error)
        except (OSError, sqlite3.Error, ValueError) as error:
            state, reason, found["detail"] = "failed", "failed", str(error)
        finally:
            shutil.rmtree(self._work, ignore_errors=True)
        found["detail"] = " ".join(str(found.get("detail", "")).split())[:MAX_DETAIL_CHARS]
        if isinstance(found.get("provenance"), dict):
            found["provenance"] = {**found["provenance"], "agent_version": self._agent_version}
        about: dict[str, Any] = {
            "order": order.id,
            "order_sha256": order_sha256,
            "device": self._device_id,
            "inventory": self._inventory(),
            "started_at": started_at,
            "ended_at": self._clock(),
        }
        try:
            return MeasureResult.model_validate(
                {**about, "state": state, "reason": reason, **found}
            )
        except ValidationError as error:  # what the child found is anybody's
            return MeasureResult.model_validate(
                {
                    **about,
                    "state": "failed",
                    "reason": "measuring_failed",
                    "detail": f"the measurement's answer makes no sense: {describe(error)}",
                }
            )

    def _carry_out(self, order: MeasureOrder, order_sha256: str, payload: bytes) -> dict[str, Any]:
        """What was found.

        Raises:
            UpdateError, OSError, ValueError: why nothing was.
        """
        if not self._enabled:
            raise Refused("no lab device: its operator has not set 'lab = true'", "not_a_lab")
        if order.profile != self._profile:
            raise WrongProfile(f"the order is for {order.profile}, this is {self._profile}")
        interrupted = self._interrupted_for(payload)
        with contextlib.closing(self._open_trust()) as trust:
            verified = self._verified(trust, order, order_sha256, interrupted)
            left_s = order.expires_at - trust.now()
        self._say(order, "accepted")
        self._work.mkdir(parents=True)
        require_room(self._work, list(verified.values()), self._quota_bytes)
        self._say(order, "downloading")
        self._fetch_all(order, verified, interrupted)
        (self._work / child.ORDER_NAME).write_bytes(payload)
        self._say(order, "measuring")
        return self._measured(left_s, interrupted)

    def _verified(
        self,
        trust: Trust,
        order: MeasureOrder,
        order_sha256: str,
        interrupted: Callable[[], bool],
    ) -> dict[str, Candidate]:
        """What both repositories say of every blob that the order names."""
        targets = [order.candidate, order.samples]
        targets += [order.compare_with] if order.compare_with is not None else []
        unknown = 0
        for attempt in range(1_000_000):
            if interrupted():
                raise Interrupted("the order was taken back")
            try:
                trust.refresh()
                _require_fresh(order, trust.now())
                found = {t.target: trust.candidate(t.target, order_sha256) for t in targets}
            except NotYet as error:
                unknown += isinstance(error, NotAssigned)
                if unknown >= UNKNOWN_ORDER_TRIES:
                    raise Refused(f"nobody signed this order: {error}", "forged_order") from error
                _require_fresh(order, trust.now())
                self._wait(RETRY_PAUSES_S[min(attempt, len(RETRY_PAUSES_S) - 1)])
                continue
            for wanted in targets:
                signed = found[wanted.target]
                if (signed.sha256, signed.length) != (wanted.sha256, wanted.length):
                    raise Refused(f"{wanted.target} is not what the order says", "forged_order")
            return found
        raise Failed("gave up")

    def _fetch_all(
        self,
        order: MeasureOrder,
        verified: dict[str, Candidate],
        interrupted: Callable[[], bool],
    ) -> None:
        transfer = Transfer(self._chunks, self._work / "downloads", pace=self._pace)
        fetcher = Fetcher(transfer, self._fetch, self._unpack_bytes)
        samples = verified[order.samples.target]
        fetcher.blob(samples, self._work / child.SAMPLES_NAME, interrupted)
        for target, name in (
            (order.candidate, child.CANDIDATE_NAME),
            (order.compare_with, child.BASELINE_NAME),
        ):
            if target is None:
                continue
            manifest = fetcher.bundle(verified[target.target], self._work / name, interrupted)
            if manifest.profile != self._profile:
                raise WrongProfile(
                    f"{target.target} is for {manifest.profile}, this is {self._profile}"
                )

    def _measured(self, left_s: float, interrupted: Callable[[], bool]) -> dict[str, Any]:
        """Measure what lies in the work directory, within the order's time."""
        self._served()  # what is counted begins here
        outcome = run_confined(
            "edge_agent.lab.child",
            [str(self._work)],
            timeout_s=max(1.0, left_s),
            memory_mib=self._memory_mib,
            cpu_s=int(max(1.0, left_s)) * max(1, self._inventory().cores),
            interrupted=interrupted,
        )
        if interrupted():
            raise Interrupted("the order was taken back")
        if outcome.answer is None:
            raise Failed(outcome.detail, "measuring_failed")
        try:
            found = json.loads(outcome.answer)
        except ValueError as error:
            raise Failed("the measurement's answer makes no sense", "measuring_failed") from error
        if not isinstance(found, dict):
            raise Failed("the measurement's answer makes no sense", "measuring_failed")
        allowed = ("latency", "server", "cost", "comparison", "memory_mib", "provenance", "detail")
        return {
            **{name: found[name] for name in allowed if name in found},
            "served_requests": self._served(),
        }

    # ── answers ──────────────────────────────────────────────────────────────────────────────────

    def _say(self, order: MeasureOrder, state: MeasureState) -> None:
        """Tell how far the order is; what cannot be told is left out."""
        try:
            self._send(pack_frame(MeasureHeader(order=order.id, state=state), b""))
        except Exception as error:
            log.warning("lab.progress_lost state=%s cause=%s", state, error)

    def _answer(self, result: MeasureResult) -> None:
        body = result.encode()
        header = MeasureHeader(
            order=result.order,
            state=result.state,
            detail=result.detail,
            signature=self._sign(SIGNED_PREFIX + body).hex(),
        )
        self._journal.answer(result.order, pack_frame(header, body))
        self._send_unsent()

    def _send_unsent(self) -> None:
        for order, frame in self._journal.unreported():
            self._send(frame)
            self._journal.reported(order)

    # ── state ────────────────────────────────────────────────────────────────────────────────────

    @property
    def _work(self) -> Path:
        return self._directory / "work"

    @property
    def _journal_path(self) -> Path:
        return self._directory / "orders.sqlite"

    @property
    def _journal(self) -> LabJournal:
        if self._opened is None:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._opened = LabJournal(self._journal_path, self._clock)
        return self._opened

    def _interrupted_for(self, payload: bytes) -> Callable[[], bool]:
        def interrupted() -> bool:
            with self._lock:
                replaced = self._newest is not None and self._newest != payload
            return replaced or self._stopping.is_set()

        return interrupted


def _require_fresh(order: MeasureOrder, now: float) -> None:
    """
    Raises:
        Refused: the order's time is over, or it claims more than any order has.
    """
    if now >= order.expires_at or order.expires_at - order.issued_at > MAX_ORDER_S:
        raise Refused("the order has expired", "order_expired")
