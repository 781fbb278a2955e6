"""Recipes: ways to make files for a runtime from an exported network.

fp32                    the network, slim
ort-fp16                ONNX with fp16 weights
ort-int8                ONNX, static QDQ (-entropy, -percentile: other calibrations)
ort-int8-dynamic        ONNX, scales of activations from each batch
ort-int8-weights        ONNX, large matrices in 8 bits (ort-int4-weights: in 4)
openvino-fp32           OpenVINO, 32 bits (-fp16, -bf16: where the CPU has them)
openvino-int8           OpenVINO, quantised by NNCF (-mixed: the other preset)
openvino-int8-weights   OpenVINO, weights in 8 bits (openvino-int4-weights: in 4)
tensorrt-fp16           ONNX in fp16 for TensorRT
tensorrt-int8           ONNX, static QDQ in TensorRT's form
qat-int8                ort-int8 of a network that is trained for it; only where it is named
"""

from __future__ import annotations

from optimizer.passes import dynamic, floats, ort, ov, qat, trt
from optimizer.passes.context import Artifact, Batches, PassContext, Precision, RecipeConfig
from optimizer.passes.own import register_files
from optimizer.passes.registry import Recipe, find, recipe, recipes

__all__ = [
    "Artifact",
    "Batches",
    "PassContext",
    "Precision",
    "Recipe",
    "RecipeConfig",
    "dynamic",
    "find",
    "floats",
    "ort",
    "ov",
    "qat",
    "recipe",
    "recipes",
    "register_files",
    "trt",
]
