"""Which version of each model serves, and what becomes of one that does not load.

A committed version that no longer loads gives its place to the one before; its assignment is open
again, so that the updater mends it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_agent.update.journal import Journal
from edge_agent.update.ports import Activate, Deactivate
from edge_agent.update.store import Installed, SlotStore

log = logging.getLogger("skerry.update")


class NotActivated(Exception):
    """A bundle of a group cannot be served; none of the group is."""

    def __init__(self, model: str, detail: str) -> None:
        super().__init__(detail)
        self.model = model


ActivateAll = Callable[[Mapping[str, Path]], None]
"""`Activate` of several models at the same time.

Raises:
    NotActivated: one cannot be served; all serve what they did before.
"""


@dataclass(frozen=True, slots=True)
class Failure:
    """A pending version that does not load, with all that was switched together with it."""

    unit: list[Installed]
    detail: str


class Serving:
    """See the module.  For one thread at a time."""

    def __init__(
        self,
        store: SlotStore,
        journal: Journal,
        activate: Activate,
        deactivate: Deactivate | None = None,
        activate_all: ActivateAll | None = None,
    ) -> None:
        self._store = store
        self._journal = journal
        self._activate = activate
        self._deactivate = deactivate
        self._activate_all = activate_all
        self._active: dict[str, Path] = {}
        self._failing: set[str] = set()

    def fails(self, model: str) -> bool:
        """Whether the committed version of `model` does not load."""
        return model in self._failing

    def served(self) -> list[Installed]:
        """What serves now."""
        return [
            each
            for model in self._store.models()
            for each in (self._store.current(model), self._store.previous(model))
            if each is not None and self._serves(each)
        ]

    def serve(self, model: str) -> Failure | None:
        """Serve what is current; the version before, if a committed one does not load.

        Returns:
            A pending version that does not load, to be abandoned; None otherwise.
        """
        installed = self._store.current(model)
        if installed is None:
            return None
        fault = self._load(installed)
        if fault is None:
            return None
        if installed.pending:
            return Failure(self._store.unit(model), fault)
        self._failing.add(model)
        self._fall_back(installed)
        return None

    def change(self, unit: Sequence[Installed]) -> tuple[str, str] | None:
        """Serve what was just switched to.

        Returns:
            The model that cannot be served, and why; None when all are.
        """
        if self._activate_all is None or len(unit) == 1:
            for each in unit:
                if (fault := self._load(each)) is not None:
                    return each.model, fault
            return None
        try:
            self._activate_all({each.model: each.path for each in unit})
        except NotActivated as error:
            log.error("model.not_activated model=%s error=%s", error.model, error)
            return error.model, str(error)
        except Exception as error:
            log.error("model.not_activated model=%s error=%s", unit[0].model, error)
            return unit[0].model, str(error)
        for each in unit:
            self._changed(each)
        return None

    def ensure(self, unit: Sequence[Installed]) -> tuple[str, str] | None:
        """`change`, unless all of `unit` serve already."""
        return None if all(self._serves(each) for each in unit) else self.change(unit)

    def before(self, model: str) -> None:
        """Serve the version before, although the store could not go back to it yet."""
        previous = self._store.previous(model)
        if previous is not None:
            self._load(previous)
        else:
            self._stop(model)

    def back(self, model: str) -> None:
        """Serve what a revert made current; nothing, if nothing is."""
        if self._store.current(model) is not None:
            self.serve(model)
        else:
            self._stop(model)

    def _stop(self, model: str) -> None:
        if self._deactivate is not None and self._active.pop(model, None) is not None:
            self._deactivate(model)

    def _load(self, installed: Installed) -> str | None:
        """Why it does not load; None when it serves."""
        try:
            self._activate(installed.model, installed.path)
        except Exception as error:
            log.error("model.not_activated model=%s error=%s", installed.model, error)
            return str(error) or type(error).__name__
        self._changed(installed)
        return None

    def _serves(self, installed: Installed) -> bool:
        return self._active.get(installed.model) == installed.path

    def _changed(self, installed: Installed) -> None:
        self._active[installed.model] = installed.path
        self._failing.discard(installed.model)
        log.info("model.activated model=%s version=%d", installed.model, installed.version)

    def _fall_back(self, broken: Installed) -> None:
        model = broken.model
        try:
            self._journal.reopen(model, broken.target, healthy=True)
            before = self._store.previous(model)
            if before is None or self._load(before) is not None:
                return
            log.warning("model.fell_back model=%s version=%d", model, before.version)
            self._store.fall_back(model)
        except Exception:
            # a disk that takes no writes is no reason to stop serving
            log.exception("update.not_recovered")
