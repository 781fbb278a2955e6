"""Serving on the device: the Open Inference Protocol v2 over HTTP on TCP and a Unix socket.

Owns the transport-neutral data plane, the protocol's encoding, the HTTP server, and the serving
figures.  What is served, and when, is decided by `update`; what is sampled, by `sampling` through
the `observe` hook.
"""

from __future__ import annotations

from edge_agent.serve.dataplane import DataPlane, Prediction, ServedModel
from edge_agent.serve.errors import (
    BadRequest,
    CannotListen,
    ModelNotServed,
    NotServable,
    Overloaded,
    ServeError,
)
from edge_agent.serve.metrics import MetricsWindow
from edge_agent.serve.server import Server

__all__ = [
    "BadRequest",
    "CannotListen",
    "DataPlane",
    "MetricsWindow",
    "ModelNotServed",
    "NotServable",
    "Overloaded",
    "Prediction",
    "ServeError",
    "ServedModel",
    "Server",
]
