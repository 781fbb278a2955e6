"""Networks of a project: untrained members, and trained ones from their checkpoints.

A derived member's checkpoint tells how it differs from the member that it was made of, its base.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from cloud.project import Project
from cloud.training.errors import BadFunction
from cloud.training.functions import import_function
from optimizer.derive.rebuilt import rebuild
from optimizer.fine_tuning import load_weights


def build_member(project: Project, project_dir: Path, member: str) -> nn.Module:
    """The untrained network of a member.

    Raises:
        BadFunction: the family's function does not return a network.
    """
    params = project.family.params(member)
    module = import_function(project_dir, project.family.build)(**params)
    if not isinstance(module, nn.Module):
        raise BadFunction(
            f"{project.family.build} must return a torch.nn.Module, not {type(module).__name__}"
        )
    return module


def load_member(
    project: Project, project_dir: Path, member: str, checkpoint: Path, bases: Mapping[str, str]
) -> nn.Module:
    """A trained network in evaluation mode.

    Args:
        bases: by derived member, the member of the family that it was made of.

    Raises:
        TrainingFailed: the checkpoint is of another architecture.
    """
    module = build_member(project, project_dir, bases.get(member, member))
    saved = torch.load(checkpoint, weights_only=True)
    if member in bases:
        return rebuild(module, saved)
    load_weights(module, saved)
    return module.eval()
