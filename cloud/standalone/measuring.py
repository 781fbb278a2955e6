"""Where a search's candidates are timed, as its request says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cloud.lab.access import measurer_of
from optimizer.predicting import PredictingMeasurer
from optimizer.predictor import Point, Predictor
from optimizer.timing import Measurer


@contextmanager
def measurer_for(request: Mapping[str, Any]) -> Iterator[Measurer]:
    """On lab devices where the request has a `lab` (see `cloud.lab.access`), else here.

    What this machine cannot measure is predicted, corrected by the `points` of the request.

    Raises:
        LabUnreachable, CannotMeasure: the lab does not answer, or has no device for this.
    """
    if request.get("lab"):
        with measurer_of(request["lab"]) as measurer:
            yield measurer
    else:
        yield PredictingMeasurer(Predictor([Point(**each) for each in request.get("points", ())]))
