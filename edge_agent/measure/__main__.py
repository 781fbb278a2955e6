"""The command `python -m edge_agent.measure BUNDLE_DIR`: measures an unpacked bundle here.

The samples are the inputs of the bundle's known answers.  A result goes to standard output, as
text or with `--json` as one object.  What goes wrong is one line on standard error: exit code 2
when the person gave something wrong or the bundle does not run, 1 when the machine is at fault,
130 when the person stopped it.  A verdict is a result, whatever it is: exit code 0.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, NoReturn

from pydantic import BaseModel

from edge_agent.measure import table
from edge_agent.measure.errors import MeasureError
from edge_agent.measure.machine import machine_lock
from edge_agent.measure.network import (
    compare_pipelines,
    find_pipeline_qps,
    measure_memory,
    measure_pipeline,
)
from edge_agent.measure.results import MeasureSettings
from edge_agent.pipeline import Pipeline, PipelineError, golden, manifest_file
from edge_agent.runtime import SessionError, Tensors
from edge_agent.wire.errors import WireError
from edge_agent.wire.manifest import Manifest

PROGRAM: Final = "python -m edge_agent.measure"
SCENARIOS: Final = ("single_stream", "server", "offline", "highest_qps")
_LOCK_S: Final = 60.0
_SEARCH_S: Final = 120.0


class BadRequest(ValueError):
    """What the person asked for cannot be measured."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        _fail(f"{message}; see '{PROGRAM} --help'", 2)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point; never returns."""
    options = _parser().parse_args(arguments)
    try:
        text = _run(options)
    except (BadRequest, WireError, PipelineError, SessionError, ValueError) as error:
        _fail(str(error), 2)
    except MeasureError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("stopped", 130)
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except OSError as error:
        _fail(f"standard output: {error.strerror or error}", 1)
    raise SystemExit(0)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROGRAM, description="Measures an unpacked bundle on this device.")
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE_DIR", help="directory with manifest.json")
    add("--scenario", choices=SCENARIOS, help="single_stream by default")
    add("--qps", type=_positive, help="server: rate of arrivals; offline: rate to reach")
    add("--latency-ms", type=_positive, help="limit that the percentile is held to")
    add("--percentile", type=_percent, default=0.99, help="in per cent, 99 by default")
    add("--batch", type=_count, help="offline: samples per call; the largest good one by default")
    add("--threads", type=_count, help="of one run, instead of the bundle's own")
    add("--instances", type=_count, help="runs at a time, instead of the bundle's own")
    add("--against", type=Path, metavar="DIR", help="how much faster than the bundle in DIR it is")
    add("--time-limit-s", type=_positive, help="of highest_qps (120) or --against (60)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="seconds; to choose by")
    length.add_argument("--mlperf", action="store_true", help="ten minutes at least")
    add("--seed", type=int, default=0)
    add("--memory", action="store_true", help="weigh a process that serves the bundle too")
    add("--json", action="store_true", help="one JSON object instead of text")
    return parser


def _run(options: argparse.Namespace) -> str:
    """Measure what was asked for; the text to print."""
    _check(options)
    settings = MeasureSettings(seed=options.seed)
    if options.quick:
        settings = MeasureSettings.quick_mode(options.seed)
    elif options.mlperf:
        settings = MeasureSettings.mlperf_mode(options.seed)
    with ExitStack() as stack:
        manifest, pipeline = _open(options.bundle, options, stack)
        samples = _samples(options.bundle, manifest, pipeline)
        baseline = None
        if options.against is not None:
            _, baseline = _open(options.against, options, stack)
        stack.enter_context(machine_lock(_LOCK_S))
        result, render = _measured(options, settings, manifest, pipeline, baseline, samples)
    memory_mib = measure_memory(options.bundle) if options.memory else None
    bundle = f"{manifest.model} version {manifest.version}, {manifest.variant}"
    if options.json:
        found = {
            "bundle": bundle,
            "kind": type(result).__name__,
            "result": result.model_dump(mode="json"),
            "memory_mib": memory_mib,
        }
        return json.dumps(found, ensure_ascii=False)
    lines = [bundle, render]
    if memory_mib is not None:
        lines.append(f"memory of a process that serves it: {memory_mib:.0f} MiB")
    return "\n".join(lines)


def _measured(
    options: argparse.Namespace,
    settings: MeasureSettings,
    manifest: Manifest,
    pipeline: Pipeline,
    baseline: Pipeline | None,
    samples: Sequence[Tensors],
) -> tuple[BaseModel, str]:
    """The result, and its text."""
    if baseline is not None:
        compared = compare_pipelines(
            baseline, pipeline, samples, settings=settings, time_limit_s=options.time_limit_s
        )
        return compared, table.comparison(compared)
    if options.scenario == "highest_qps":
        found = find_pipeline_qps(
            pipeline,
            samples,
            target_latency_ms=options.latency_ms,
            percentile=options.percentile,
            settings=settings,
            time_limit_s=options.time_limit_s or _SEARCH_S,
        )
        return found, table.search(found)
    batch = options.batch
    if batch is None and options.scenario == "offline" and manifest.cost is not None:
        batch = manifest.cost.max_batch
    measured = measure_pipeline(
        pipeline,
        samples,
        scenario=options.scenario or "single_stream",
        settings=settings,
        target_latency_ms=options.latency_ms,
        percentile=options.percentile,
        qps=options.qps,
        batch=batch or 1,
    )
    return measured, table.measurement(measured)


def _check(options: argparse.Namespace) -> None:
    """Refuse what would otherwise be ignored.

    Raises:
        BadRequest: options that do not go together.
    """
    scenario = options.scenario or "single_stream"
    given = {
        "--scenario": options.scenario,
        "--qps": options.qps,
        "--latency-ms": options.latency_ms,
        "--batch": options.batch,
    }
    if options.against is not None:
        for name, value in given.items():
            if value is not None:
                raise BadRequest(f"--against compares two bundles; it does not take {name}")
    elif scenario != "highest_qps" and options.time_limit_s is not None:
        raise BadRequest("--time-limit-s is for --scenario highest_qps and for --against")
    elif scenario == "highest_qps" and options.latency_ms is None:
        raise BadRequest("--scenario highest_qps needs --latency-ms, the limit that must hold")
    elif scenario == "highest_qps" and options.qps is not None:
        raise BadRequest("--scenario highest_qps finds the rate; it does not take --qps")
    elif scenario == "server" and options.qps is None:
        raise BadRequest("--scenario server needs --qps, the rate of arrivals")
    elif scenario != "offline" and options.batch is not None:
        raise BadRequest("--batch is for --scenario offline")


def _open(
    directory: Path, options: argparse.Namespace, stack: ExitStack
) -> tuple[Manifest, Pipeline]:
    """The bundle in `directory`, with the threads and instances that were asked for.

    Raises:
        BadRequest: there is no bundle.
        WireError, PipelineError, SessionError: it cannot be opened.
    """
    try:
        manifest = manifest_file.read(directory)
    except OSError as error:
        raise BadRequest(
            f"{directory}: no unpacked bundle: manifest.json: {error.strerror or error}"
        ) from error
    wished = {"threads": options.threads, "instances": options.instances}
    changed = {name: value for name, value in wished.items() if value is not None}
    network = manifest.network.model_copy(update=changed)
    pipeline = Pipeline.open(directory, manifest.model_copy(update={"network": network}))
    stack.callback(pipeline.close)
    return manifest, pipeline


def _samples(directory: Path, manifest: Manifest, pipeline: Pipeline) -> list[Tensors]:
    """The known inputs, each row a batch of one; all of them where the batch axis is fixed.

    Raises:
        BadRequest: there are none.
        GoldenMismatch: the file is damaged.
    """
    if manifest.golden is None:
        raise BadRequest(f"{directory}: has no known answers whose inputs could be measured with")
    inputs, _ = golden.read(directory / manifest.golden)
    if any(spec.shape and spec.shape[0] > 0 for spec in pipeline.inputs):
        return [inputs]
    rows = pipeline.validate(inputs)
    return [{name: array[row : row + 1] for name, array in inputs.items()} for row in range(rows)]


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, not {text}")
    return value


def _percent(text: str) -> float:
    value = float(text)
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"must be between 0 and 100, such as 99, not {text}")
    return value / 100


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 4096:
        raise argparse.ArgumentTypeError(f"must be between 1 and 4096, not {text}")
    return value


_positive.__name__, _percent.__name__, _count.__name__ = "number", "percentage", "count"


def _fail(message: str, code: int) -> NoReturn:
    with suppress(OSError):  # a terminal that is gone
        sys.stderr.write(f"{PROGRAM}: {' '.join(message.split())}\n")
        sys.stderr.flush()
    raise SystemExit(code)


if __name__ == "__main__":
    main()
