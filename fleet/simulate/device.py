"""One simulated device: what it does with its twin, its journal and its state, by the contract.

It decides what the real agent decides (`edge_agent.update.passes`): an assignment (model,
generation, target) ends once; a newer generation supersedes what is under way; a device never goes
back to a lower counter.  Three differences: it downloads nothing, it verifies nothing, and models
of one group are installed one by one.

It knows no sockets: what it sends leaves by a port, which a line of its own or a gateway's
implements.  For one event loop.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, Protocol

from edge_agent.wire.commands import MAX_COMMAND_BYTES, Command
from edge_agent.wire.errors import WireError
from edge_agent.wire.messages import (
    Ack,
    Desired,
    DesiredModel,
    DeviceEvent,
    DeviceState,
    MetricsReport,
    ModelState,
    Phase,
    UpdateReport,
)
from edge_agent.wire.resending import NOBODY_SUBSCRIBES
from edge_agent.wire.topics import UplinkKind
from fleet.simulate import commands
from fleet.simulate.journal import Journal, frame
from fleet.simulate.line import Answer, LineLost
from fleet.simulate.models import Behaviour, Draws, Hardware

AGENT_VERSION: Final = "simulated"
READS: Final = ("desired", "ack", "command")
"""Tails of the topics that a simulated device subscribes to."""
_WAY: Final[tuple[Phase, ...]] = (
    "downloading", "verified", "staged", "activating", "probation", "healthy",
)  # fmt: skip

_FAILURES: Final[Mapping[Phase, tuple[Phase, str]]] = {
    "downloading": ("failed", "transfer_stalled"),
    "verified": ("rejected", "bad_bundle"),
    "staged": ("failed", "selftest_failed"),
    "activating": ("rolled_back", "activation_failed"),
    "probation": ("rolled_back", "error_rate"),
}
"""How the real agent ends an update that fails after it reported the phase."""

_NOT_INTERRUPTED: Final[frozenset[Phase]] = frozenset({"activating", "probation"})
"""Once switched, a version is judged before the next one has its turn."""


class Port(Protocol):
    """How a device speaks; topics are the tails behind the device's id."""

    def publish(self, tail: str, payload: bytes, *, retain: bool, answer: Answer | None) -> None:
        """Publish at QoS 1.

        Raises:
            LineLost: there is no line now.
        """
        ...


class _Installed:
    """What a device serves of one model."""

    __slots__ = ("counter", "previous", "target", "version")

    def __init__(
        self, version: int, counter: int, target: str, previous: _Installed | None
    ) -> None:
        self.version, self.counter, self.target = version, counter, target
        self.previous = previous


class _Update:
    """One assignment under way."""

    __slots__ = ("began_at", "phase", "timer", "want")

    def __init__(self, want: DesiredModel, began_at: float) -> None:
        self.want = want
        self.began_at = began_at
        self.phase: Phase = "queued"
        self.timer: asyncio.TimerHandle | None = None


class SimulatedDevice:
    """See the module.

    Attributes:
        history: final phases of this device's assignments, as (model, generation, phase).
    """

    __slots__ = (
        "_behaviour", "_birth_due", "_boot", "_clock", "_commands", "_connected",
        "_desired_version", "_draws", "_ended", "_hardware", "_installed", "_loop",
        "_metrics_timer", "_port", "_publishing", "_resend_timer", "_skew_s", "_speed", "_updates",
        "_want", "history", "id", "journal", "profile",
    )  # fmt: skip

    def __init__(
        self,
        device_id: str,
        profile: str,
        hardware: Hardware,
        behaviour: Behaviour,
        port: Port,
        *,
        seed: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """To be called with an event loop running.

        Args:
            clock: the right time, in seconds since the epoch.
        """
        self.id = device_id
        self.profile = profile
        self._hardware = hardware
        self._behaviour = behaviour
        self._port = port
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._draws = Draws(seed, device_id)
        self._skew_s = behaviour.clock_skew_s * self._draws.normal()
        self._speed = hardware.p50_us.draw(self._draws)
        self._boot = self._new_name()
        self.journal = Journal(self._boot, resend_s=behaviour.resend_s)
        self._desired_version = 0
        self._commands: dict[str, None] = {}
        self._want: dict[str, DesiredModel] = {}
        self._installed: dict[str, _Installed] = {}
        self._updates: dict[str, _Update] = {}
        self._ended: dict[str, tuple[int, str]] = {}
        self._connected = False
        self._birth_due = False
        self._publishing = False
        self._resend_timer: asyncio.TimerHandle | None = None
        self._metrics_timer: asyncio.TimerHandle | None = None
        self.history: list[tuple[str, int, Phase]] = []

    # ── what it is ───────────────────────────────────────────────────────────────────────────────

    @property
    def boot(self) -> str:
        """Drawn at each start."""
        return self._boot

    @property
    def busy(self) -> bool:
        """Whether an update is under way, or something waits for the control plane."""
        return bool(self._updates) or len(self.journal) > 0 or self._birth_due or self._publishing

    def versions(self) -> dict[str, int]:
        """What it serves, by model."""
        return {model: each.version for model, each in self._installed.items()}

    def phases(self) -> dict[str, Phase]:
        """Updates under way, by model."""
        return {model: each.phase for model, each in self._updates.items()}

    def now(self) -> float:
        """The time by its own clock."""
        return self._clock() + self._skew_s

    # ── the line ─────────────────────────────────────────────────────────────────────────────────

    def will(self) -> bytes:
        """What the broker is to say when the device is lost."""
        return DeviceState(boot=self._boot, online=False, at=self.now()).encode()

    def connected(self) -> None:
        """A line is up: say who one is, and send all that waits."""
        self._connected = True
        self._publishing = False
        self.journal.reconnected()
        self._say_state()
        self._send_due()
        if self._metrics_timer is None and self._behaviour.metrics_interval_s:
            # not all at once
            self._metrics_later(self._behaviour.metrics_interval_s * self._draws.uniform())

    def disconnected(self) -> None:
        """The line is gone; updates go on, metrics are journalled."""
        self._connected = False
        self._publishing = False
        self._cancel_resend()

    def stop(self) -> None:
        """End all timers; what waits is lost."""
        self.disconnected()
        for update in self._updates.values():
            if update.timer is not None:
                update.timer.cancel()
        if self._metrics_timer is not None:
            self._metrics_timer.cancel()
            self._metrics_timer = None

    def quieten(self) -> None:
        """Send no more metrics."""
        self._behaviour = replace(self._behaviour, metrics_interval_s=0.0)
        if self._metrics_timer is not None:
            self._metrics_timer.cancel()
            self._metrics_timer = None

    def restart(self) -> None:
        """The agent starts anew: a new boot, and every update under way from its beginning."""
        self._boot = self._new_name()
        self.journal.reopen(self._boot)
        for model, update in list(self._updates.items()):
            if update.timer is not None:
                update.timer.cancel()
            if update.phase == "probation":
                self._arm(model, update, update.want.probation_s)  # probation begins again
            else:
                del self._updates[model]
                self._begin(model, update.want)

    def received(self, tail: str, payload: bytes) -> None:
        """A message came on the topic with this tail."""
        try:
            if tail == "desired":
                if not payload:  # the twin was taken off the broker
                    return
                self._on_desired(Desired.decode(payload))
            elif tail == "ack" and self.journal.acknowledge(Ack.decode(payload)):
                self._send_due()
            elif tail == "command":
                self._on_command(Command.decode(payload, limit=MAX_COMMAND_BYTES))
        except WireError as error:
            event = DeviceEvent(
                name="message_refused", fields={"topic": tail, "reason": str(error)}, at=self.now()
            )
            self.journalled("event", event.encode())

    def _new_name(self) -> str:
        # a seed names behaviour, not runs: rows of an earlier run must never be taken for these
        return f"{self._draws.bits():016x}{time.time_ns():016x}"

    # ── updates ──────────────────────────────────────────────────────────────────────────────────

    def _on_desired(self, desired: Desired) -> None:
        self._desired_version = desired.version
        self._want = dict(desired.models)
        for model, update in list(self._updates.items()):
            newest = desired.models.get(model)
            stands = newest is not None and _key(newest) == _key(update.want)
            if not stands and update.phase not in _NOT_INTERRUPTED:
                self._finish(model, update, "cancelled" if newest is None else "superseded")
        for model in desired.models:
            self._begin_wanted(model)
        self._say_state()

    def _begin_wanted(self, model: str) -> None:
        """Begin what the twin wants, unless it has ended before or is under way."""
        want = self._want.get(model)
        if want is not None and model not in self._updates and self._ended.get(model) != _key(want):
            self._begin(model, want)

    def _begin(self, model: str, want: DesiredModel) -> None:
        update = self._updates[model] = _Update(want, self._clock())
        current = self._installed.get(model)
        if current is not None and current.target == want.target:
            self._finish(model, update, "healthy")
        elif current is not None and want.counter < current.counter:
            detail = f"counter {want.counter} is below {current.counter}"
            self._finish(model, update, "rejected", "older_release", detail)
        else:
            self._enter(model, update, "downloading")

    def _enter(self, model: str, update: _Update, phase: Phase) -> None:
        update.phase = phase
        if phase == "healthy":
            self._finish(model, update, phase)
            return
        if phase == "probation":
            want, before = update.want, self._installed.get(model)
            if before is not None:
                before.previous = None  # two slots, no more
            self._installed[model] = _Installed(want.version, want.counter, want.target, before)
        self._report(model, update, phase)
        spread = self._behaviour.phase_s.get(phase)
        if phase == "probation":
            self._arm(model, update, update.want.probation_s)
        else:
            self._arm(model, update, spread.draw(self._draws) if spread is not None else 0.0)

    def _arm(self, model: str, update: _Update, seconds: float) -> None:
        update.timer = self._loop.call_later(seconds, self._leave, model, update)

    def _leave(self, model: str, update: _Update) -> None:
        """A phase is over: the next one, or the end."""
        update.timer = None
        if self._draws.chance(self._failure(update)):
            phase, reason = _FAILURES[update.phase]
            if update.phase == "probation":
                self._revert(model)
            self._finish(model, update, phase, reason, "simulated")
            return
        self._enter(model, update, _WAY[_WAY.index(update.phase) + 1])

    def _failure(self, update: _Update) -> float:
        """Probability that the update ends in its present phase."""
        usual = self._behaviour.failures.get(update.phase, 0.0)
        version = self._behaviour.of_version(update.want.version, self.profile)
        if update.phase == "staged":
            return max(usual, version.selftest_failure)
        if update.phase == "probation":
            return max(usual, version.probation_failure)
        return usual

    def _revert(self, model: str) -> None:
        before = self._installed[model].previous
        if before is None:
            del self._installed[model]
        else:
            self._installed[model] = before

    def _finish(
        self, model: str, update: _Update, phase: Phase, reason: str = "", detail: str = ""
    ) -> None:
        if update.timer is not None:
            update.timer.cancel()
        del self._updates[model]
        self._ended[model] = _key(update.want)
        self.history.append((model, update.want.generation, phase))
        self._report(model, update, phase, reason, detail)
        self._begin_wanted(model)  # a newer one may have come while this could not be interrupted

    def _report(
        self, model: str, update: _Update, phase: Phase, reason: str = "", detail: str = ""
    ) -> None:
        want = update.want
        report = UpdateReport(
            model=model,
            target=want.target,
            version=want.version,
            counter=want.counter,
            generation=want.generation,
            rollout=want.rollout,
            phase=phase,
            reason=reason,
            detail=detail,
            elapsed_s=self._clock() - update.began_at,
        )
        self.journalled("report", report.encode())
        self._say_state()

    # ── commands ─────────────────────────────────────────────────────────────────────────────────

    def _on_command(self, command: Command) -> None:
        if command.device != self.id or command.id in self._commands:
            return
        self._commands[command.id] = None
        if len(self._commands) > commands.MAX_REMEMBERED:
            del self._commands[next(iter(self._commands))]
        now = self.now()
        if (ends := commands.refusal(command, now)) is not None:
            state, reason, detail = ends
            ended = commands.answer(command, state, self._boot, now, reason, detail)
            self.journalled("command", ended)
            return
        self.journalled("command", commands.answer(command, "accepted", self._boot, now))
        if command.name == "restart":
            self.restart()
        if command.name in ("restart", "resend"):
            self._say_state()
        for body in commands.done(command, self._boot, now):
            self.journalled("command", body)

    # ── what it says ─────────────────────────────────────────────────────────────────────────────

    def state(self) -> DeviceState:
        """The birth: everything that is known now."""
        models: dict[str, ModelState] = {}
        for model, each in self._installed.items():
            update = self._updates.get(model)
            phase: Phase = update.phase if update is not None else "healthy"
            models[model] = ModelState(
                version=each.version,
                counter=each.counter,
                sha256=f"{each.counter:064x}",
                variant="simulated",
                phase=phase,
            )
        return DeviceState(
            boot=self._boot,
            online=True,
            agent_version=AGENT_VERSION,
            profile=self.profile,
            inventory=self._hardware.inventory,
            models=models,
            desired_version=self._desired_version,
            at=self.now(),
        )

    def _say_state(self) -> None:
        """Publish the state; one at a time, and after it the newest."""
        self._birth_due = True
        if not self._connected or self._publishing:
            return
        self._birth_due = False
        self._publishing = True
        try:
            self._port.publish("state", self.state().encode(), retain=True, answer=self._said_state)
        except LineLost:
            self._publishing = False
            self._birth_due = True  # with the next line

    def _said_state(self, _reason: int) -> None:
        self._publishing = False
        if self._birth_due:
            self._say_state()

    def say_offline(self) -> None:
        """The last word of an orderly stop."""
        if self._connected:
            try:
                self._port.publish("state", self.will(), retain=True, answer=None)
            except LineLost:
                return

    def journalled(self, kind: UplinkKind, payload: bytes) -> None:
        """Journal a message, and send it as soon as there is a line."""
        if self.journal.append(kind, payload):
            self._send_due()

    def flush(self) -> None:
        """Send what is due of the journal; `journalled` does it by itself."""
        self._send_due()

    def _send_due(self) -> None:
        if not self._connected:
            return
        now = self._loop.time()
        try:
            for row in self.journal.due(now):
                self._port.publish(
                    f"up/{row.kind}", frame(row, self.now()), retain=False, answer=self._heard
                )
        except LineLost:
            return  # the next line sends all again
        self._send_later()

    def _heard(self, reason: int) -> None:
        if reason == NOBODY_SUBSCRIBES and self._connected:
            self.journal.unheard(self._loop.time())
            self._send_later()

    def _send_later(self) -> None:
        now = self._loop.time()
        due = self.journal.next_due(now)
        self._cancel_resend()
        if due is not None:
            self._resend_timer = self._loop.call_at(max(due, now + 0.01), self._send_due)

    def _cancel_resend(self) -> None:
        if self._resend_timer is not None:
            self._resend_timer.cancel()
            self._resend_timer = None

    # ── metrics ──────────────────────────────────────────────────────────────────────────────────

    def _metrics_later(self, seconds: float) -> None:
        self._metrics_timer = self._loop.call_later(seconds, self._say_metrics)

    def _say_metrics(self) -> None:
        for model, each in self._installed.items():
            self.journalled("metrics", self._metrics(model, each).encode())
        self._metrics_later(self._behaviour.metrics_interval_s)

    def _metrics(self, model: str, installed: _Installed) -> MetricsReport:
        behaviour, draws = self._behaviour, self._draws
        version = behaviour.of_version(installed.version, self.profile)
        window_s = behaviour.metrics_interval_s
        requests = max(0, round(behaviour.requests_per_s * window_s * (1 + 0.1 * draws.normal())))
        errors = behaviour.error_rate + version.error_rate
        noise = 1 + 0.03 * draws.normal()
        p99_us = self._speed * self._hardware.p99_factor * version.p99_factor * noise
        return MetricsReport(
            model=model,
            version=installed.version,
            window_s=window_s,
            requests=requests,
            errors=_binomial(requests, errors, draws),
            rejects=0,
            corrections=0,
            latency_p50_us=self._speed * noise,
            latency_p99_us=p99_us,
            rss_mib=self._hardware.rss_mib + version.extra_mib + draws.normal(),
        )


def _key(want: DesiredModel) -> tuple[int, str]:
    return want.generation, want.target


def _binomial(n: int, p: float, draws: Draws) -> int:
    """About binomial: by the normal distribution, which serves for counts of errors."""
    mean = n * p
    return min(n, max(0, round(mean + math.sqrt(mean * (1 - p)) * draws.normal())))
