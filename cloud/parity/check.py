"""The check: every batch size against items alone, and the device against this side.

Rules:
    * An item that is refused alone is refused in every batch it stands in, so it is compared alone
      and left out of larger batches.
    * Memory is bound by one batch, not by the number of items: single items are run again for each
      batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as with_changes

import numpy as np
from numpy.typing import NDArray

from cloud.parity.compare import Comparison, Ledger, Tolerance, Verdict, overall
from cloud.parity.device import Device, TooLarge
from cloud.parity.errors import InputsDoNotFit
from cloud.parity.protocol import rounded
from cloud.parity.traces import Runner, Trace, batches_of, join, run_here, take
from edge_agent.pipeline import Pipeline, Tensors
from edge_agent.wire.manifest import Manifest

DEFAULT_BATCHES = (1, 2, 3, 8)


@dataclass(frozen=True, slots=True)
class Checked:
    """What the check found.

    Attributes:
        items: how many were fed.
        shows_steps: whether the device showed its steps; None without a device.
        notes: what limits the verdict, or what to know beside it.
    """

    verdict: Verdict
    comparisons: tuple[Comparison, ...]
    items: int
    shows_steps: bool | None
    notes: tuple[str, ...]


def check(
    manifest: Manifest,
    pipeline: Pipeline,
    inputs: Tensors,
    *,
    tolerance: Tolerance,
    batches: Sequence[int] = DEFAULT_BATCHES,
    device: Device | None = None,
) -> Checked:
    """Compare.

    Args:
        inputs: all items, each array [n, …]; they fit the interface.
        batches: sizes to try; an interface with a fixed batch axis has that one only.

    Raises:
        ParityError: the device cannot be asked, or serves another version.
        InputsDoNotFit: no batch can be made of the inputs.
    """
    return _Check(manifest, pipeline, inputs, tolerance, device).run(batches)


class _Check:
    def __init__(
        self,
        manifest: Manifest,
        pipeline: Pipeline,
        inputs: Tensors,
        tolerance: Tolerance,
        device: Device | None,
    ) -> None:
        self._manifest = manifest
        self._here: Runner = run_here(pipeline)
        self._inputs = inputs
        self._tolerance = tolerance
        self._device = device
        self._count = len(next(iter(inputs.values()), ()))
        self._notes: list[str] = []

    def run(self, batches: Sequence[int]) -> Checked:
        if not self._count or any(size < 1 for size in batches):
            raise InputsDoNotFit("there are no items to compare, or a batch of less than one")
        items = np.arange(self._count)
        sizes = sorted({1, *batches})
        fixed = next((s.shape[0] for s in self._manifest.inputs if s.shape[0] > 0), None)
        if fixed is not None:
            sizes = [fixed]
            self._notes.append(
                f"the interface fixes the batch axis at {fixed}: no other size can be compared"
            )
        if max(sizes) > self._count and max(sizes) > 1:
            self._notes.append(
                f"{self._count} different items only: larger batches repeat them, which hides "
                "steps that mix the items of a batch"
            )
        comparisons: list[Comparison] = []
        for size in sizes:
            found, answered = self._size(size, items, alone=fixed is None)
            comparisons.extend(found)
            if size == 1:
                items = answered
        shows_steps = None
        if self._device is not None:
            shows_steps = not self._device.why_no_steps
            if not shows_steps:
                self._notes.append(
                    "the device does not show its steps, so only its answers were compared "
                    f"({self._device.why_no_steps}); set 'debug = true' in its agent.toml, or ask "
                    "over its administrative socket (--socket, --agent)"
                )
        elif not comparisons:
            self._notes.append("without a device there is nothing to compare with")
        return Checked(
            overall(each.verdict for each in comparisons),
            tuple(comparisons),
            self._count,
            shows_steps,
            tuple(self._notes),
        )

    def _size(
        self, size: int, items: NDArray[np.intp], *, alone: bool
    ) -> tuple[list[Comparison], NDArray[np.intp]]:
        """One batch size; also the items that are answered in it."""
        in_batch = self._ledger() if alone and size > 1 else None
        on_device = self._ledger() if self._device is not None else None
        too_large = False
        answered: list[NDArray[np.intp]] = []
        for rows in batches_of(items, size):
            batch = take(self._inputs, rows)
            trace = self._here(batch)
            if trace.stop is None:
                answered.append(rows)
            if in_batch is not None:
                singles = [self._here(take(self._inputs, rows[i : i + 1])) for i in range(size)]
                in_batch.add(join(singles), trace, size)
            if on_device is not None and not too_large:
                too_large = not self._ask_device(on_device, batch, trace, size)
        comparisons = []
        if in_batch is not None:
            comparisons.append(in_batch.close("batch of 1", size))
        if on_device is not None:
            comparisons.append(on_device.close("device", size))
        return comparisons, np.concatenate(answered) if answered else items[:0]

    def _ask_device(self, ledger: Ledger, batch: Tensors, here: Trace, size: int) -> bool:
        """Compare one batch with the device; False if it takes none of this size."""
        if self._device is None:
            return False
        try:
            there = self._device.run(batch, self._manifest)
        except TooLarge as error:
            ledger.incomplete(f"the device takes no batch of {size}: {error}")
            return False
        ledger.add(
            with_changes(here, outputs=rounded(here.outputs, self._manifest.outputs)), there, size
        )
        return True

    def _ledger(self) -> Ledger:
        names = [step.name for step in self._manifest.pipeline]
        return Ledger(self._tolerance, names, len(self._manifest.labels))
