"""Batch scoring: a data set in, a file of answers out, by a bundle on this machine.

    skerry-agent score --dir DIR --input photos/ --output answers.parquet

Rules:
    * What scores is the `Predictor`: the committed version, with the checkers and services of the
      server, and nothing sampled or sent.
    * Memory is bounded by a batch of `cost.max_batch` rows and a part of the output.
    * A row that cannot be read or answered becomes a row with an error, and is counted; in a batch
      such rows stand before the others.  One bad row costs no other its answer.
    * The output appears whole, at the end.  Whatever ends the work before leaves no file behind.

ScoreError
└── BadTarget  (user) the output cannot be written there, or in that form
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from edge_agent.disk import writing_whole
from edge_agent.pipeline import PipelineError
from edge_agent.pipeline.dataset import BadRow, Batch, open_dataset
from edge_agent.pipeline.task import answer
from edge_agent.predictor import Predictor
from edge_agent.score_output import SUFFIXES, Output, open_output

TERMINAL_PAUSE_S: Final = 0.2
LINE_PAUSE_S: Final = 10.0


class ScoreError(Exception):
    """Base of this module's errors."""


class BadTarget(ScoreError):
    """The output cannot be written where or how it was asked for."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What was done.

    Attributes:
        rows: all of them.
        errors: rows without an answer.
    """

    rows: int
    errors: int
    elapsed_s: float


class Progress:
    """Says how far the work is: one line that changes on a terminal, else a line now and then.

    Where nobody can be told, the work goes on all the same.
    Rows per second and the time that is left come from the whole run so far.
    """

    def __init__(
        self,
        total: int | None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            total: rows to come; None when nobody knows.
            stream: standard error unless told otherwise.
        """
        self._total = total
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._start = clock()
        # None where the process was started without one
        self._terminal = self._stream is not None and self._stream.isatty()
        self._pause_s = TERMINAL_PAUSE_S if self._terminal else LINE_PAUSE_S
        self._said_at = self._start
        self.rows = 0
        self.errors = 0

    @property
    def elapsed_s(self) -> float:
        return self._clock() - self._start

    def add(self, rows: int, errors: int) -> None:
        self.rows += rows
        self.errors += errors
        now = self._clock()
        if now - self._said_at >= self._pause_s:
            self._said_at = now
            line = self._line(now - self._start)
            self._write(f"\r{line}\x1b[K" if self._terminal else f"{line}\n")

    def end(self) -> None:
        """Take the changing line away."""
        if self._terminal:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError):  # a terminal that is gone
                self._stream.write(text)
                self._stream.flush()

    def _line(self, elapsed_s: float) -> str:
        rate = self.rows / elapsed_s if elapsed_s > 0 else 0.0
        parts = [
            f"{self.rows:,} rows" if self._total is None else f"{self.rows:,} of {self._total:,}"
        ]
        parts.append(f"{rate:,.0f} rows/s" if rate >= 10 else f"{rate:.2g} rows/s")
        if self.errors:
            parts.append(f"{self.errors:,} with errors")
        if self._total is not None and rate > 0:
            parts.append(f"{duration(max(self._total - self.rows, 0) / rate)} left")
        return " · ".join(parts)


def duration(seconds: float) -> str:
    """`seconds` as a person reads them."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def score(
    predictor: Predictor, source: Path, target: Path, progress: TextIO | None = None
) -> Scored:
    """Answer every row of `source` and write the answers to `target`.

    Args:
        source: a directory of images, .npz, .parquet or .jsonl; see `pipeline.dataset`.
        target: .parquet or .jsonl; replaced at the end, if it is there already.
        progress: where to say how far it is; standard error unless told otherwise.

    Raises:
        BadTarget: see the class.
        DatasetError: the source cannot be read.
        OSError: the disk refused.
    """
    _check_target(source, target)
    manifest = predictor.manifest
    unread: list[BadRow] = []
    dataset = open_dataset(source, manifest.inputs, image=manifest.image, on_bad=unread.append)
    said = Progress(dataset.rows, progress)
    size = 1 if manifest.cost is None else manifest.cost.max_batch
    try:
        with (
            writing_whole(target, mode=_mode()) as file,
            contextlib.closing(open_output(target, file, manifest)) as output,
        ):

            def tell_unread() -> int:
                for row in unread:
                    output.failed(row.id, row.reason)
                count = len(unread)
                unread.clear()
                return count

            for batch in dataset.batches(size):
                errors = tell_unread()
                said.add(len(batch) + errors, errors + _answer(predictor, batch, output))
            errors = tell_unread()
            said.add(errors, errors)
    finally:
        said.end()
    return Scored(said.rows, said.errors + output.unfit, said.elapsed_s)


def _answer(predictor: Predictor, batch: Batch, output: Output) -> int:
    """Write the answers of a batch, item by item if one of them is at fault; how many have none."""
    try:
        answers = answer(predictor.predict(batch.tensors), predictor.manifest)
        if len(answers) != len(batch):
            raise PipelineError(f"{len(batch)} rows gave {len(answers)} answers")
    except PipelineError as error:
        if len(batch) == 1 or any(spec.shape[0] != -1 for spec in predictor.manifest.inputs):
            for row_id in batch.ids:
                output.failed(row_id, " ".join(str(error).split()))
            return len(batch)
        return sum(_answer(predictor, row, output) for row in batch.apart())
    output.answered(batch.ids, answers)
    return 0


def _check_target(source: Path, target: Path) -> None:
    if target.suffix not in SUFFIXES:
        raise BadTarget(f"{target}: the output must be named {' or '.join(SUFFIXES)}")
    if target.is_dir():
        raise BadTarget(f"{target}: is a directory")
    if not target.parent.is_dir():
        raise BadTarget(f"{target}: there is no directory {target.parent}")
    if target.exists() and source.exists() and target.samefile(source):
        raise BadTarget(f"{target}: is the input itself")


def _mode() -> int:
    """Permissions that a new file gets from this process."""
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP end the work as Ctrl-C does: nothing is left behind.

    One that is ignored, as `nohup` has it, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        signum: handler
        for signum in (signal.SIGTERM, signal.SIGHUP)
        if (handler := signal.getsignal(signum)) is not signal.SIG_IGN
    }
    try:
        for signum in before:
            signal.signal(signum, signal.default_int_handler)
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
