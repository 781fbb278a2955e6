"""Distillation: smaller members learn on with the largest one's answers beside the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from optimizer.derive.registry import (
    Choice,
    DeriveConfig,
    DeriveContext,
    Derived,
    Sized,
    derivation,
)
from optimizer.errors import DeriveFailed
from optimizer.family import Distillation


class Distil(DeriveConfig):
    """Config of `distil`.

    Attributes:
        temperature, weight: see `Distillation`.
    """

    temperature: Annotated[float, Field(ge=1, le=100)] = 4.0
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5

    @property
    def suffix(self) -> str:
        return "distilled"

    def choices(self, members: Sequence[Sized]) -> Sequence[Choice]:
        """Every smaller member, taught by the one with the most parameters."""
        teacher = max(members, key=lambda one: one.parameters)
        smaller = [one for one in members if one.parameters < teacher.parameters]
        if self.members:
            smaller = [one for one in smaller if one.name in self.members]
        if not smaller:
            raise DeriveFailed(f"distil: no member is smaller than '{teacher.name}', which teaches")
        return [Choice(one.name, teacher.name) for one in smaller]


@derivation("distil", config=Distil)
def distil(context: DeriveContext, config: Distil) -> Derived:
    """The parent, trained on with a teacher."""
    trainer, epochs = context.trainer, context.epochs(config)
    module = context.earlier if context.earlier is not None else trainer.module(context.parent)
    trainer.fit(
        module,
        epochs=epochs,
        rate=config.rate,
        teacher=trainer.module(context.teacher),
        distillation=Distillation(config.temperature, config.weight),
    )
    return Derived(
        module,
        (
            f"derived from {context.parent}: distilled from {context.teacher} for {epochs} epochs "
            f"(temperature {config.temperature:g}, weight {config.weight:g})",
        ),
    )
