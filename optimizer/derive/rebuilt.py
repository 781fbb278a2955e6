"""Checkpoints of networks whose shape is no longer that of the member they were built as.

A checkpoint holds the weights, and those attributes of layers (`out_channels`, `num_features`, …)
in which the derived network differs from a freshly built one.  Nothing of it is code, so it is read
with `weights_only`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimizer.errors import TrainingFailed
from optimizer.fine_tuning import load_weights

if TYPE_CHECKING:
    from torch import nn

Checkpoint = dict[str, Any]


def describe(fresh: nn.Module, derived: nn.Module) -> Checkpoint:
    """What turns `fresh`, a new network of the parent's architecture, into `derived`."""
    plain = {name: _attributes(layer) for name, layer in fresh.named_modules()}
    changed: dict[str, dict[str, Any]] = {}
    for name, layer in derived.named_modules():
        before = plain.get(name, {})
        different = {k: v for k, v in _attributes(layer).items() if before.get(k) != v}
        if different:
            changed[name] = different
    return {"attributes": changed, "weights": derived.state_dict()}


def rebuild(fresh: nn.Module, checkpoint: Checkpoint) -> nn.Module:
    """`fresh` in the shape and with the weights of the checkpoint, in evaluation mode.

    Raises:
        TrainingFailed: the checkpoint is of another architecture.
    """
    from torch import nn

    layers = dict(fresh.named_modules())
    for name, attributes in checkpoint["attributes"].items():
        if name not in layers:
            raise TrainingFailed(f"the checkpoint has a layer '{name}' that the network has not")
        for key, value in attributes.items():
            setattr(layers[name], key, value)
    for name, tensor in checkpoint["weights"].items():
        owner, _, leaf = name.rpartition(".")
        if owner not in layers:
            raise TrainingFailed(f"the checkpoint has a layer '{owner}' that the network has not")
        layer = layers[owner]
        now = getattr(layer, leaf, None)
        if now is None or now.shape == tensor.shape:
            continue
        if isinstance(now, nn.Parameter):
            setattr(layer, leaf, nn.Parameter(tensor.clone(), requires_grad=now.requires_grad))
        else:
            setattr(layer, leaf, tensor.clone())
    load_weights(fresh, checkpoint["weights"])
    return fresh.eval()


def _attributes(layer: nn.Module) -> dict[str, Any]:
    """What of a layer's own settings is plain: numbers, text, and tuples of them."""
    return {
        name: value
        for name, value in vars(layer).items()
        if not name.startswith("_") and name != "training" and _is_plain(value)
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(item) for item in value)
    return isinstance(value, int | float | str | bool)
