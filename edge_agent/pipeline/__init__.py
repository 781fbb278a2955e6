"""The pipeline: checkers, processors, the network, services, in a config's order.

Owns the steps and their registry, a project's step files, the check of a request against the
interface, and the known answers.  The cloud evaluates and measures with it, the device serves with
it.  It knows no transport and no bundle format beyond the manifest.
"""

from __future__ import annotations

from edge_agent.pipeline import builtin, golden, manifest_file
from edge_agent.pipeline.code import load_code
from edge_agent.pipeline.errors import (
    CodeNotLoadable,
    DatasetError,
    DuplicateStep,
    GoldenMismatch,
    InputError,
    PipelineError,
    Rejected,
    StepConfigError,
    StepError,
    StepFailed,
    TaskError,
    UnknownStep,
)
from edge_agent.pipeline.interface import Interface, Request, Steps, validate
from edge_agent.pipeline.pipeline import Pipeline, Result
from edge_agent.pipeline.steps import (
    MODEL_STEP,
    Step,
    check_config,
    checker,
    processor,
    registered,
    service,
)
from edge_agent.runtime.session import Array, Tensors

__all__ = [
    "MODEL_STEP",
    "Array",
    "CodeNotLoadable",
    "DatasetError",
    "DuplicateStep",
    "GoldenMismatch",
    "InputError",
    "Interface",
    "Pipeline",
    "PipelineError",
    "Rejected",
    "Request",
    "Result",
    "Step",
    "StepConfigError",
    "StepError",
    "StepFailed",
    "Steps",
    "TaskError",
    "Tensors",
    "UnknownStep",
    "builtin",
    "check_config",
    "checker",
    "golden",
    "load_code",
    "manifest_file",
    "processor",
    "registered",
    "service",
    "validate",
]
