"""The device's side of Skerry, and what an application on the device uses of it.

    from edge_agent import Predictor

    with Predictor("/var/lib/skerry") as predictor:
        answer = predictor.predict({"x": x})

Importing this package imports nothing else; `Predictor` is fetched when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_agent.predictor import Predictor, PredictorError

__all__ = ["Predictor", "PredictorError"]


def __getattr__(name: str) -> object:
    """PEP 562: the library's names, on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from edge_agent import predictor

    return getattr(predictor, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
