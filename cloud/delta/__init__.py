"""Deltas between raw bundles, made at publish (docs/adr/0009).

make         `make_delta`: two raw bundles in, a delta out
layout       a bundle as tensors and what is between them, and which tensors correspond
tensors      where the tensors lie in an ONNX or OpenVINO file
transforms   the forward half of what a device undoes
"""

from cloud.delta.make import Delta, make_delta

__all__ = ["Delta", "make_delta"]
