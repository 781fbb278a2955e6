"""Training networks on arrays: the one loop, and the port by which recipes train further.

    trainer.fit(module, epochs=3, rate=0.1, teacher=trainer.module("large"))
    trainer.export(module, directory / "model.onnx")

Owns the loop (Adam on weighted cross-entropy, a cosine schedule) and distillation's loss.

Rules:
    * A network sees what the pipeline's processors hand to it; whoever makes a trainer prepares
      the rows so.  It never sees a row that it is judged on.
    * The same seed, rows, network and machine give the same weights, also where a training was
      stopped between two epochs and went on from its saved state.
    * torch is imported when something is trained, not with this module.

It does not know where rows and checkpoints come from.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.runtime import Tensors
from optimizer.errors import TrainingFailed
from optimizer.evaluate import Accuracy, score
from optimizer.export import NetworkInterface, export_onnx
from optimizer.family import Distillation, TrainingSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

Report = Callable[[float, str], None]
"""Takes the share that is done, 0..1, and one line on what is being done."""

State = dict[str, Any]
"""What `Training` needs to go on; tensors, numbers and text, so `torch.load(weights_only=True)`."""

_EXAMPLE_ROWS: Final = 4
_PREDICT_ROWS: Final = 1024


@dataclass(frozen=True)
class LabelledRows:
    """Rows as the network gets them.

    Attributes:
        tensors: the network's inputs, [n, ...] each, in the order of its arguments.
        labels: class indices INT64 [n].
        weight: weight of each row in the loss FP64 [n]; empty weighs all alike.
    """

    tensors: Tensors
    labels: NDArray[np.int64]
    weight: NDArray[np.float64] = field(default_factory=lambda: np.array([], dtype=np.float64))

    def __len__(self) -> int:
        return len(self.labels)


class Trainer(Protocol):
    """Trains members of a family further.  Not for use by several threads at once."""

    @property
    def spec(self) -> TrainingSpec:
        """How members were trained in the first place."""
        ...

    @property
    def fingerprint(self) -> str:
        """Digest of the rows and the settings: equal ones train equally."""
        ...

    @property
    def example(self) -> Tensors:
        """A few rows of the network's inputs, for what must trace a network."""
        ...

    def module(self, member: str) -> nn.Module:
        """A trained member in evaluation mode; the caller may change it.

        Raises:
            TrainingFailed: there is no such member, or its weights do not fit it.
        """
        ...

    def fit(
        self,
        module: nn.Module,
        *,
        epochs: int,
        rate: float = 1.0,
        teacher: nn.Module | None = None,
        distillation: Distillation | None = None,
    ) -> None:
        """Train `module` in place on the training rows; leaves it in evaluation mode.

        Args:
            rate: factor of the project's learning rate; a trained network takes less than 1.
            teacher: network whose answers count beside the labels.
            distillation: how much they do; the defaults where `None`.

        Raises:
            TrainingFailed: the loss is not finite.
        """
        ...

    def accuracy(self, module: nn.Module) -> Accuracy:
        """Of `module` on rows that it was not trained on."""
        ...

    def export(self, module: nn.Module, path: Path) -> NetworkInterface:
        """Write `module` to `path` as ONNX.

        Raises:
            ExportFailed: as `export_onnx`.
        """
        ...


class Training:
    """One training that may stop after any epoch and go on exactly there."""

    def __init__(
        self,
        module: nn.Module,
        rows: LabelledRows,
        spec: TrainingSpec,
        *,
        teacher: nn.Module | None = None,
        distillation: Distillation | None = None,
    ) -> None:
        import torch

        self._module, self._spec = module, spec
        self._optimizer = torch.optim.Adam(
            module.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay
        )
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self._optimizer, T_max=spec.epochs
        )
        self._generator = torch.Generator().manual_seed(spec.seed)
        weight = rows.weight if len(rows.weight) else np.ones(len(rows))
        self._inputs = _as_torch(rows.tensors)
        self._labels = torch.from_numpy(rows.labels)
        self._weight = torch.from_numpy(weight.astype(np.float32))
        self._distillation = distillation or Distillation()
        self._taught = None if teacher is None else torch.from_numpy(predict(teacher, rows.tensors))
        self.epoch = 0

    def run(self, until: int, report: Report = lambda _share, _text: None) -> None:
        """Train up to and with epoch `until`, counted from 1 over all runs.

        Raises:
            TrainingFailed: the loss is not finite.
        """
        import torch

        self._module.train()
        rows = len(self._labels)
        while self.epoch < until:
            total = 0.0
            order = torch.randperm(rows, generator=self._generator)
            for batch in order.split(self._spec.batch_size):
                loss = self._loss(batch)
                self._optimizer.zero_grad()
                loss.backward()
                self._optimizer.step()
                total += float(loss.detach()) * len(batch)
            self._schedule.step()
            self.epoch += 1
            if not math.isfinite(total):
                raise TrainingFailed(
                    f"epoch {self.epoch}: the loss is {total}; lower training.learning_rate"
                )
            report(self.epoch / until, f"epoch {self.epoch}, loss {total / rows:.4f}")

    def state(self) -> State:
        """Everything that the next epoch depends on."""
        import torch

        return {
            "module": self._module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "order": self._generator.get_state(),
            "random": torch.get_rng_state(),
            "epoch": self.epoch,
        }

    def resume(self, state: State) -> None:
        """Take over the state of a training of the same network, rows and settings."""
        import torch

        self._module.load_state_dict(state["module"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._generator.set_state(state["order"])
        torch.set_rng_state(state["random"])
        self.epoch = int(state["epoch"])

    def _loss(self, batch: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        logits = first_output(self._module(*(tensor[batch] for tensor in self._inputs)))
        losses = functional.cross_entropy(logits, self._labels[batch], reduction="none")
        if self._taught is not None:
            share, heat = self._distillation.weight, self._distillation.temperature
            distance = functional.kl_div(
                functional.log_softmax(logits / heat, dim=1),
                functional.log_softmax(self._taught[batch] / heat, dim=1),
                reduction="none",
                log_target=True,
            ).sum(dim=1)
            losses = (1 - share) * losses + share * heat**2 * distance
        weight = self._weight[batch]
        return (losses * weight).sum() / weight.sum()


class ArrayTrainer:
    """The `Trainer` over rows in memory."""

    def __init__(
        self,
        *,
        load: Callable[[str], nn.Module],
        train: LabelledRows,
        judged: LabelledRows,
        spec: TrainingSpec,
        labels: Sequence[str],
        outputs: Sequence[str],
        report: Report = lambda _share, _text: None,
    ) -> None:
        """
        Args:
            load: a new trained network by the member's name; may raise `TrainingFailed`.
            judged: rows that nothing is trained on.
            labels: class names by index.
            outputs: names of the network's outputs.
        """
        self._load, self._train, self._judged = load, train, judged
        self._labels, self._outputs = tuple(labels), tuple(outputs)
        self._spec, self._report = spec, report

    @property
    def spec(self) -> TrainingSpec:
        return self._spec

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self._spec.model_dump_json().encode())
        for name, array in self._train.tensors.items():
            digest.update(f"{name}{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
        digest.update(self._train.labels.tobytes())
        digest.update(self._train.weight.tobytes())
        return digest.hexdigest()

    @property
    def example(self) -> Tensors:
        return {name: array[:_EXAMPLE_ROWS] for name, array in self._train.tensors.items()}

    def module(self, member: str) -> nn.Module:
        return self._load(member).eval()

    def fit(
        self,
        module: nn.Module,
        *,
        epochs: int,
        rate: float = 1.0,
        teacher: nn.Module | None = None,
        distillation: Distillation | None = None,
    ) -> None:
        import torch

        spec = self._spec.model_copy(
            update={"epochs": epochs, "learning_rate": self._spec.learning_rate * rate}
        )
        torch.manual_seed(spec.seed)
        training = Training(module, self._train, spec, teacher=teacher, distillation=distillation)
        training.run(epochs, self._report)
        module.eval()

    def accuracy(self, module: nn.Module) -> Accuracy:
        logits = predict(module, self._judged.tensors)
        return score(logits.argmax(axis=1).astype(np.int64), self._judged.labels, self._labels)

    def export(self, module: nn.Module, path: Path) -> NetworkInterface:
        return export_onnx(module, self.example, path, self._outputs)


def predict(
    module: nn.Module, tensors: Tensors, batch_rows: int = _PREDICT_ROWS
) -> NDArray[np.float32]:
    """Logits FP32 [n, classes] of all rows; leaves `module` in evaluation mode."""
    import torch

    module.eval()
    inputs = _as_torch(tensors)
    with torch.no_grad():
        parts = [
            first_output(module(*(tensor[start : start + batch_rows] for tensor in inputs))).numpy()
            for start in range(0, len(inputs[0]), batch_rows)
        ]
    return np.concatenate(parts)


def first_output(output: object) -> torch.Tensor:
    """The logits: what a network returns, or the first of what it returns.

    Raises:
        TrainingFailed: that is not a tensor.
    """
    import torch

    first = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(first, torch.Tensor):
        raise TrainingFailed(f"the network returns {type(first).__name__}, not a tensor of logits")
    return first


def load_weights(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Give `module` these weights.

    Raises:
        TrainingFailed: they are of another network.
    """
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:  # torch lists every tensor that does not fit, one a line
        raise TrainingFailed("the checkpoint does not fit the network that was built") from error


def _as_torch(tensors: Tensors) -> list[torch.Tensor]:
    import torch

    return [torch.from_numpy(np.ascontiguousarray(array)) for array in tensors.values()]
