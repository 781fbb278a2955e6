"""Recipes: ways to make files for a runtime from an exported network.

fp32            ONNX Runtime, as exported
ort-int8        ONNX Runtime, static QDQ
openvino-fp32   OpenVINO, 32 bits
openvino-int8   OpenVINO, quantised by NNCF
"""

from __future__ import annotations

from optimizer.passes import ort, ov
from optimizer.passes.context import Artifact, Batches, PassContext, Precision, RecipeConfig
from optimizer.passes.registry import Recipe, find, recipe, recipes

__all__ = [
    "Artifact",
    "Batches",
    "PassContext",
    "Precision",
    "Recipe",
    "RecipeConfig",
    "find",
    "ort",
    "ov",
    "recipe",
    "recipes",
]
