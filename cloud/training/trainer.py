"""The optimizer's `Trainer` over a project's rows and checkpoints.

Rows are prepared and torch is imported when something is trained, for most searches train nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cloud.project import Project
from cloud.training.arrays import Rows
from edge_agent.runtime.session import Tensors
from optimizer.errors import TrainingFailed
from optimizer.evaluate import Accuracy
from optimizer.export import NetworkInterface
from optimizer.family import Distillation, TrainingSpec
from optimizer.fine_tuning import ArrayTrainer

if TYPE_CHECKING:
    from torch import nn

JUDGED_ON: Final = ("eval",)


class ProjectTrainer:
    """Trains members of a project further; see `optimizer.fine_tuning.Trainer`."""

    def __init__(
        self,
        project: Project,
        project_dir: Path,
        rows: Rows,
        checkpoints: Mapping[str, Path],
        bases: Mapping[str, str],
        report: Callable[[float, str], None] = lambda _share, _text: None,
    ) -> None:
        """
        Args:
            checkpoints: by member.
            bases: by derived member, the member of the family that it was made of.
        """
        self._project, self._project_dir, self._rows = project, project_dir, rows
        self._checkpoints, self._bases, self._report = dict(checkpoints), dict(bases), report

    @property
    def spec(self) -> TrainingSpec:
        return self._project.training

    @property
    def fingerprint(self) -> str:
        return self._arrays.fingerprint

    @property
    def example(self) -> Tensors:
        return self._arrays.example

    def module(self, member: str) -> nn.Module:
        return self._arrays.module(member)

    def fit(
        self,
        module: nn.Module,
        *,
        epochs: int,
        rate: float = 1.0,
        teacher: nn.Module | None = None,
        distillation: Distillation | None = None,
    ) -> None:
        self._arrays.fit(
            module, epochs=epochs, rate=rate, teacher=teacher, distillation=distillation
        )

    def accuracy(self, module: nn.Module) -> Accuracy:
        return self._arrays.accuracy(module)

    def export(self, module: nn.Module, path: Path) -> NetworkInterface:
        return self._arrays.export(module, path)

    @cached_property
    def _arrays(self) -> ArrayTrainer:
        from cloud.training.prepare import labelled, network_inputs

        tensors, rows = network_inputs(self._project, self._project_dir, self._rows)
        return ArrayTrainer(
            load=self._load,
            train=labelled(tensors, rows, "train"),
            judged=labelled(tensors, rows, *JUDGED_ON),
            spec=self._project.training,
            labels=self._project.labels,
            outputs=self._project.family.outputs,
            report=self._report,
        )

    def _load(self, member: str) -> nn.Module:
        from cloud.training.networks import load_member

        if member not in self._checkpoints:
            raise TrainingFailed(f"there is no checkpoint of member '{member}'")
        return load_member(
            self._project, self._project_dir, member, self._checkpoints[member], self._bases
        )
