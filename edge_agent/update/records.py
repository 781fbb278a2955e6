"""What the slot store remembers: rows of `state.sqlite`, for use under the store's lock.

Knows no files but the database: whether a slot is there, and where a link points, is the store's.
A damaged file is set aside, and what a new one begins with is for the store to find out.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, TypeAdapter, ValidationError

from edge_agent.disk.database import Damaged, open_durable
from edge_agent.disk.surviving import Surviving
from edge_agent.wire.ids import Digest, Slug, is_slug
from edge_agent.wire.manifest import ReleaseInfo
from edge_agent.wire.messages import SHARE_PPM, TrialMode

_SCHEMA = """
CREATE TABLE IF NOT EXISTS installed(
    model TEXT, role TEXT CHECK (role IN ('current', 'previous')),
    sha256 TEXT NOT NULL, target TEXT NOT NULL, version INTEGER NOT NULL,
    counter INTEGER NOT NULL, variant TEXT NOT NULL, generation INTEGER NOT NULL,
    rollout TEXT, probation_s REAL NOT NULL,
    PRIMARY KEY (model, role));
CREATE TABLE IF NOT EXISTS pending(
    model TEXT PRIMARY KEY, tries INTEGER NOT NULL, unit TEXT);
CREATE TABLE IF NOT EXISTS trials(
    model TEXT PRIMARY KEY,
    sha256 TEXT NOT NULL, target TEXT NOT NULL, version INTEGER NOT NULL,
    counter INTEGER NOT NULL, variant TEXT NOT NULL, generation INTEGER NOT NULL,
    rollout TEXT, probation_s REAL NOT NULL,
    mode TEXT NOT NULL, share_ppm INTEGER NOT NULL, pending INTEGER NOT NULL,
    tries INTEGER NOT NULL);
"""
_COLUMNS = "sha256, target, version, counter, variant, generation, rollout, probation_s"

Role = Literal["current", "previous"]

_Count = Annotated[int, Field(ge=0)]
_INSTALLED_ROWS: Final = TypeAdapter(
    list[
        tuple[
            Slug, Role, Digest, str, Annotated[int, Field(ge=1)], _Count, str, _Count, str | None,
            Annotated[float, Field(ge=0, allow_inf_nan=False)],
        ]
    ]
)  # fmt: skip
_Ppm = Annotated[int, Field(ge=0, le=SHARE_PPM)]
_TRIAL_ROWS: Final = TypeAdapter(
    list[
        tuple[
            Slug, Digest, str, Annotated[int, Field(ge=1)], _Count, str, _Count, str | None,
            Annotated[float, Field(ge=0, allow_inf_nan=False)], TrialMode, _Ppm, _Count, _Count,
        ]
    ]
)  # fmt: skip
_PENDING_ROWS: Final = TypeAdapter(list[tuple[Slug, _Count, Slug | None]])


@dataclass(frozen=True, slots=True)
class Installed:
    """A version in a slot.

    Attributes:
        path: directory of the unpacked bundle.
        sha256: digest of the bundle.
        generation, rollout: of the assignment that brought it.
        pending: switched to, but not yet proven by its probation.
        tries: starts of the agent since the switch; 0 unless pending.
    """

    model: str
    path: Path
    sha256: str
    target: str
    version: int
    counter: int
    variant: str
    generation: int
    rollout: str | None
    probation_s: float
    pending: bool
    tries: int


@dataclass(frozen=True, slots=True)
class Switch:
    """A staged bundle that is to become current.

    Attributes:
        sha256: digest of the bundle; its slot is of the release's model.
        generation, rollout, probation_s: of the assignment that brings it.
    """

    sha256: str
    release: ReleaseInfo
    target: str
    generation: int = 0
    rollout: str | None = None
    probation_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Challenger:
    """A version that is tried beside the current one.

    Attributes:
        installed: pending until its own probation is over.
        share_ppm: of the requests, in parts per million.
    """

    installed: Installed
    mode: TrialMode
    share_ppm: int

    @property
    def share(self) -> float:
        return self.share_ppm / SHARE_PPM


def directory_of(root: Path, model: str) -> Path:
    """Where a model's slots and its link are.

    Raises:
        ValueError: not a model's name.
    """
    if not is_slug(model):
        raise ValueError(f"not a model name: {model[:80]!r}")
    return root / "models" / model


class Records:
    """See the module.  Changes are made inside `transaction`."""

    def __init__(self, root: Path, found: Callable[[], Iterable[tuple[Role, Installed]]]) -> None:
        """
        Args:
            found: what is installed, for a new database; nothing on a new device.
        """
        self._root = root
        self._database = Surviving(
            open_durable(root / "state.sqlite", lambda database: _prepare(database, found))
        )

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes inside are made, or none."""
        with self._database.transaction():
            yield

    def models(self) -> list[str]:
        """Models that have a current version."""
        rows = self._database.execute(
            "SELECT model FROM installed WHERE role = 'current' ORDER BY model"
        ).fetchall()
        return [row[0] for row in rows]

    def read(self, model: str, role: Role) -> Installed | None:
        row = self._database.execute(
            f"SELECT {_COLUMNS} FROM installed WHERE model = ? AND role = ?",  # noqa: S608 (constant)
            (model, role),
        ).fetchone()
        tries = self._database.execute(
            "SELECT tries FROM pending WHERE model = ?", (model,)
        ).fetchone()
        if row is None:
            return None
        pending = role == "current" and tries is not None
        return self._installed(model, row, pending, tries[0] if pending else 0)

    def _installed(
        self, model: str, columns: Sequence[Any], pending: bool, tries: int
    ) -> Installed:
        sha256, target, version, counter, variant, generation, rollout, probation_s = columns
        return Installed(
            model=model,
            path=directory_of(self._root, model) / "slots" / sha256,
            sha256=sha256,
            target=target,
            version=version,
            counter=counter,
            variant=variant,
            generation=generation,
            rollout=rollout,
            probation_s=probation_s,
            pending=pending,
            tries=tries,
        )

    def require(self, model: str) -> Installed:
        """What is current.

        Raises:
            LookupError: nothing is.
        """
        current = self.read(model, "current")
        if current is None:
            raise LookupError(f"{model} has no version")
        return current

    def is_pending(self, model: str) -> bool:
        row = self._database.execute("SELECT 1 FROM pending WHERE model = ?", (model,)).fetchone()
        return row is not None

    def unit(self, model: str) -> list[Installed]:
        """Pending versions that were switched together with that of `model`, itself included."""
        rows = self._database.execute(
            "SELECT model FROM pending WHERE coalesce(unit, model) = "
            "(SELECT coalesce(unit, model) FROM pending WHERE model = ?) ORDER BY model",
            (model,),
        ).fetchall()
        return [self.require(row[0]) for row in rows]

    def challenger(self, model: str) -> Challenger | None:
        """What is tried beside the current version."""
        row = self._database.execute(
            f"SELECT {_COLUMNS}, mode, share_ppm, pending, tries FROM trials "  # noqa: S608 (constant)
            "WHERE model = ?",
            (model,),
        ).fetchone()
        if row is None:
            return None
        *columns, mode, share_ppm, pending, tries = row
        return Challenger(self._installed(model, columns, bool(pending), tries), mode, share_ppm)

    def challengers(self) -> list[Challenger]:
        """All that are tried, by model."""
        rows = self._database.execute("SELECT model FROM trials ORDER BY model").fetchall()
        found = [self.challenger(row[0]) for row in rows]
        return [each for each in found if each is not None]

    # ── changing ─────────────────────────────────────────────────────────────────────────────────

    def insert(self, switch: Switch, variant: str, unit: str) -> None:
        """Make a version current and pending, and the committed one the one before."""
        release = switch.release
        if not self.is_pending(release.model):
            # a pending version never becomes what a revert goes back to
            self._database.execute(
                "DELETE FROM installed WHERE model = ? AND role = 'previous'", (release.model,)
            )
            self._database.execute(
                "UPDATE installed SET role = 'previous' WHERE model = ?", (release.model,)
            )
        row = (switch.sha256, switch.target, release.version, release.counter, variant)
        self._database.execute(
            f"INSERT OR REPLACE INTO installed(model, role, {_COLUMNS}) "  # noqa: S608 (constant)
            "VALUES (?, 'current', ?, ?, ?, ?, ?, ?, ?, ?)",
            (release.model, *row, switch.generation, switch.rollout, switch.probation_s),
        )
        self._database.execute(  # it is tried no more: it serves
            "DELETE FROM trials WHERE model = ? AND sha256 = ?", (release.model, switch.sha256)
        )
        self._database.execute(
            "INSERT OR REPLACE INTO pending(model, tries, unit) VALUES (?, 0, ?)",
            (release.model, unit),
        )

    def place(self, switch: Switch, variant: str, mode: TrialMode, share_ppm: int) -> None:
        """Have a version tried beside the current one, pending, instead of what was tried."""
        release = switch.release
        self._database.execute(
            f"INSERT OR REPLACE INTO trials(model, {_COLUMNS}, mode, share_ppm, pending, tries) "  # noqa: S608 (constant)
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, 0)",
            (
                release.model, switch.sha256, switch.target, release.version, release.counter,
                variant, switch.generation, switch.rollout, switch.probation_s, mode, share_ppm,
            ),
        )  # fmt: skip

    def set_trial(self, model: str, mode: TrialMode, share_ppm: int) -> None:
        """What is tried goes on in this way."""
        self._database.execute(
            "UPDATE trials SET mode = ?, share_ppm = ? WHERE model = ?", (mode, share_ppm, model)
        )

    def commit_challenger(self, model: str) -> None:
        """It is pending no more."""
        self._database.execute("UPDATE trials SET pending = 0, tries = 0 WHERE model = ?", (model,))

    def count_challenger_try(self, model: str) -> None:
        """One more start of the agent with it pending."""
        self._database.execute("UPDATE trials SET tries = tries + 1 WHERE model = ?", (model,))

    def drop_challenger(self, model: str) -> None:
        """Nothing is tried."""
        self._database.execute("DELETE FROM trials WHERE model = ?", (model,))

    def commit(self, models: Sequence[str]) -> None:
        """These are pending no more."""
        self._database.executemany(
            "DELETE FROM pending WHERE model = ?", [(model,) for model in models]
        )

    def count_try(self, models: Sequence[str]) -> None:
        """One more start of the agent with these pending."""
        self._database.executemany(
            "UPDATE pending SET tries = tries + 1 WHERE model = ?", [(model,) for model in models]
        )

    def step_back(self, model: str) -> None:
        """The version before is current; none is, when there was none."""
        self._database.execute(
            "DELETE FROM installed WHERE model = ? AND role = 'current'", (model,)
        )
        self._database.execute("UPDATE installed SET role = 'current' WHERE model = ?", (model,))
        self._database.execute("DELETE FROM pending WHERE model = ?", (model,))

    def change_places(self, model: str) -> None:
        """The current version is the one before, and the other way round."""
        self._database.execute(  # under no model's name while the places are changed
            "UPDATE installed SET model = '', role = 'previous' "
            "WHERE model = ? AND role = 'current'",
            (model,),
        )
        self._database.execute("UPDATE installed SET role = 'current' WHERE model = ?", (model,))
        self._database.execute("UPDATE installed SET model = ? WHERE model = ''", (model,))

    def forget(self, model: str) -> None:
        """No version of it is here."""
        self._database.execute("DELETE FROM installed WHERE model = ?", (model,))


def _prepare(
    database: sqlite3.Connection, found: Callable[[], Iterable[tuple[Role, Installed]]]
) -> None:
    known = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'installed'").fetchone()
    if known is None:
        _begin(database, found())
        return
    database.executescript(_SCHEMA)
    columns = database.execute("PRAGMA table_info(pending)").fetchall()
    if "unit" not in {name for _, name, *_ in columns}:  # of an agent that knew no groups
        database.execute("ALTER TABLE pending ADD COLUMN unit TEXT")
    rows = database.execute(f"SELECT model, role, {_COLUMNS} FROM installed").fetchall()  # noqa: S608 (constant)
    pending = database.execute("SELECT model, tries, unit FROM pending").fetchall()
    trials = database.execute(
        f"SELECT model, {_COLUMNS}, mode, share_ppm, pending, tries FROM trials"  # noqa: S608 (constant)
    ).fetchall()
    try:
        _TRIAL_ROWS.validate_python(trials, strict=True)
        _INSTALLED_ROWS.validate_python(rows, strict=True)
        _PENDING_ROWS.validate_python(pending, strict=True)
    except ValidationError as error:
        raise Damaged("a version makes no sense") from error
    if not {model for model, *_ in pending} <= {row[0] for row in rows if row[1] == "current"}:
        raise Damaged("a version is on probation that is not installed")


def _begin(database: sqlite3.Connection, found: Iterable[tuple[Role, Installed]]) -> None:
    """The tables and what is in them, in one transaction: half of it would pass for all."""
    database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA}")
    with database:  # commits, or rolls back
        database.executemany(
            f"INSERT INTO installed(model, role, {_COLUMNS}) "  # noqa: S608 (constant)
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    each.model, role, each.sha256, each.target, each.version, each.counter,
                    each.variant, each.generation, each.rollout, each.probation_s,
                )
                for role, each in found
            ],
        )  # fmt: skip
