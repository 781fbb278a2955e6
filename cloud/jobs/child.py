"""The inside of a child process: `python -m cloud.jobs.child TASK DIRECTORY`.

Reads `request.json` in the directory, runs the task, writes `response.json`.  Progress goes line by
line to what was the standard output; whatever the task prints goes to the log.

Imports nothing but the standard library before the task is known: starting a child is cheap.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import IO, Any, Final, Protocol

TASKS: Final = {
    "load": "cloud.training.load",
    "probe": "cloud.training.probe",
    "fit": "cloud.training.fit",
    "derive": "cloud.training.derive",
    "export": "cloud.training.export",
    "optimize": "cloud.jobs.optimizing",
    "optimize-model": "cloud.standalone.model_file",
    "predict": "cloud.jobs.predicting",
}
"""Module of each task; it has a function `run(request, directory, report) -> response`."""

Json = dict[str, Any]


class Report(Protocol):
    """Takes the share that is done, 0..1, one line on what is being done, and seconds left."""

    def __call__(self, share: float, text: str, left_s: float | None = None) -> None: ...


def main() -> int:
    """Run one task; returns the exit status."""
    task, directory = sys.argv[1], Path(sys.argv[2])
    progress = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    request: Json = json.loads((directory / "request.json").read_bytes())
    try:
        module = importlib.import_module(TASKS[task])
        response: Json = {"value": module.run(request, directory, _reporter(progress))}
    except Exception as error:
        traceback.print_exc()
        response = {"error": one_line(error, Path(str(request.get("project_dir", ""))))}
    temporary = directory / "response.json.tmp"
    temporary.write_text(json.dumps(response))
    temporary.replace(directory / "response.json")
    sys.stdout.flush()
    sys.stderr.flush()
    # Runtimes with threads of their own can hang in their destructors; the answer is on disk.
    os._exit(0 if "value" in response else 1)


def one_line(error: BaseException, project_dir: Path) -> str:
    """What went wrong on one line; for a project's own code with its file and line.

    Typed errors of ours speak for themselves; others are named by type.
    """
    own = type(error).__module__.startswith(("cloud.", "optimizer.", "edge_agent."))
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if own else f"{type(error).__name__}: {text}"
    if project_dir.name:
        frames = traceback.extract_tb(error.__traceback__)
        inside = [f for f in frames if Path(f.filename).is_relative_to(project_dir)]
        if inside:
            file = Path(inside[-1].filename).relative_to(project_dir)
            text = f"{file}:{inside[-1].lineno}: {text}"
    return text[:500]


def _reporter(progress: IO[str]) -> Report:
    def report(share: float, text: str, left_s: float | None = None) -> None:
        line = {"share": share, "text": text[:200], "left_s": left_s}
        progress.write(json.dumps(line) + "\n")

    return report


def _end_with_parent() -> None:
    """The parent holds the other end of our standard input; when it is gone, so are we."""
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
