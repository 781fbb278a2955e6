"""Serving on the device: the Open Inference Protocol v2 on TCP and Unix sockets.

Owns the transport-neutral data plane with its lanes and admission, the protocol's encoding, the
HTTP server, the optional gRPC server, and the serving figures.  What is served, and when, is
decided by `update`; what is sampled, by `sampling` through the `observe` hook.
"""

from __future__ import annotations

from edge_agent.serve.access import Buckets, RateLimit
from edge_agent.serve.administration import Command
from edge_agent.serve.dataplane import DataPlane
from edge_agent.serve.errors import (
    BadRequest,
    CannotListen,
    Expired,
    Forbidden,
    ModelNotServed,
    NotOffered,
    NotServable,
    Overloaded,
    RateLimited,
    Refused,
    ServeError,
    Unauthorized,
)
from edge_agent.serve.http_messages import Limits
from edge_agent.serve.metrics import MetricsWindow
from edge_agent.serve.prediction import Prediction
from edge_agent.serve.served_model import ServedModel
from edge_agent.serve.server import Server

__all__ = [
    "BadRequest",
    "Buckets",
    "CannotListen",
    "Command",
    "DataPlane",
    "Expired",
    "Forbidden",
    "Limits",
    "MetricsWindow",
    "ModelNotServed",
    "NotOffered",
    "NotServable",
    "Overloaded",
    "Prediction",
    "RateLimit",
    "RateLimited",
    "Refused",
    "ServeError",
    "ServedModel",
    "Server",
    "Unauthorized",
]
