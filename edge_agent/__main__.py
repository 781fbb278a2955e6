"""The command `skerry-agent`: enrol, run, status, score.

What goes wrong is one line on standard error: exit code 2 when the person gave something wrong,
1 when the machine or the control plane is at fault, 130 when the person stopped it.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import socket
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from edge_agent.device.errors import (
    AlreadyEnrolled,
    BadClaim,
    BadSettings,
    DeviceError,
    NotEnrolled,
)

INTERRUPTED: Final = 130


class BadScoring(DeviceError):
    """What to score, by what, or where to cannot be."""


BAD_INPUT: Final = (BadClaim, BadSettings, NotEnrolled, AlreadyEnrolled, BadScoring)


class NotRunning(DeviceError):
    """No agent runs in the directory."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: {message}; see '{self.prog} --help'\n")
        raise SystemExit(2)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point; never returns."""
    options = _parser().parse_args(arguments)
    if options.command != "score":
        # journal, slots and identity are for this user alone, even in a directory of others
        os.umask(0o077)
    try:
        raise SystemExit(_run(options))
    except BAD_INPUT as error:
        _fail(str(error), 2)
    except DeviceError as error:
        _fail(str(error), 1)
    except OSError as error:
        _fail(f"{error.filename or options.dir}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        _fail("stopped", INTERRUPTED)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="skerry-agent", description="Serves signed models on this device.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    enrol = commands.add_parser("enrol", help="make this device a member of a fleet")
    enrol.add_argument("--claim", type=Path, required=True, help="claim file of the control plane")
    enrol.add_argument("--name", help="wished name: a-z, 0-9 and '-'")
    run = commands.add_parser("run", help="serve, update and report until stopped")
    status = commands.add_parser("status", help="what the running agent says of itself, as JSON")
    score = commands.add_parser("score", help="answer a data set by an installed model")
    score.add_argument("--model", help="which one, where several are installed")
    score.add_argument(
        "--input", type=Path, required=True, help="images in a directory, .npz, .parquet or .jsonl"
    )
    score.add_argument("--output", type=Path, required=True, help=".parquet or .jsonl")
    for command in (enrol, run, status, score):
        command.add_argument("--dir", type=Path, required=True, help="directory of this device")
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.command == "enrol":
        return _enrol(options.dir, options.claim, options.name)
    if options.command == "status":
        return _status(options.dir)
    if options.command == "score":
        return _score(options.dir, options.model, options.input, options.output)
    return _serve(options.dir)


def _enrol(directory: Path, claim_path: Path, name: str | None) -> int:
    from edge_agent.device.enrol import enrol, read_claim
    from edge_agent.device.inventory import collect

    claim = read_claim(claim_path)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    identity = enrol(directory, claim, collect(directory), name)
    member = identity.membership
    _say(f"enrolled as {member.device_id} (profile {member.profile})")
    return 0


def _serve(directory: Path) -> int:
    from edge_agent import logs
    from edge_agent.agent import run_agent
    from edge_agent.device.config import load_settings
    from edge_agent.device.identity import load_identity
    from edge_agent.link.errors import LinkError
    from edge_agent.serve import ServeError

    settings = load_settings(directory)
    identity = load_identity(directory)
    logs.configure(settings.log_level, settings.log_format)
    try:
        run_agent(identity, settings)
    except (LinkError, ServeError) as error:
        raise DeviceError(str(error)) from error
    except sqlite3.DatabaseError as error:
        raise DeviceError(f"{directory}: a database of the agent is damaged ({error})") from error
    return 0


def _status(directory: Path) -> int:
    about_path = directory / "run" / "agent.json"
    try:
        about = json.loads(about_path.read_bytes())
        status = json.loads(_get_status(str(about["unix_socket"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotRunning(
            f"{directory}: no agent runs here; start one with 'skerry-agent run --dir {directory}'"
        ) from error
    _say(json.dumps(status, indent=2))
    return 0


def _score(directory: Path, model: str | None, source: Path, target: Path) -> int:
    from edge_agent import score
    from edge_agent.pipeline import PipelineError
    from edge_agent.pipeline.errors import DatasetError, ParquetUnavailable
    from edge_agent.predictor import NoSuchModel, NothingInstalled, Predictor, PredictorError

    try:
        with score.ending_in_order(), Predictor(directory, model) as predictor:
            scored = score.score(predictor, source, target)
    except ParquetUnavailable as error:
        raise DeviceError(str(error)) from error
    except (NothingInstalled, NoSuchModel, score.BadTarget, DatasetError) as error:
        raise BadScoring(str(error)) from error
    except (PredictorError, PipelineError) as error:
        raise DeviceError(str(error)) from error
    except OSError as error:
        raise DeviceError(f"{error.filename or target}: {error.strerror or error}") from error
    answered = scored.rows - scored.errors
    _say(
        f"{scored.rows:,} rows in {score.duration(scored.elapsed_s)}: {answered:,} answered, "
        f"{scored.errors:,} with errors, in {target}"
    )
    return 0 if answered or not scored.rows else 1


def _get_status(path: str) -> bytes:
    """Body of `/status` from the administrative socket.

    Raises:
        OSError: nobody answers, or not with a status.
    """
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(5)
        line.connect(path)
        line.sendall(b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        data = b""
        while part := line.recv(65536):
            data += part
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise ConnectionError("the agent gives no status")
    return body


def _say(text: str) -> None:
    """Write a result to standard output, now.

    Raises:
        DeviceError: it takes nothing.
    """
    try:
        if sys.stdout is None:  # the process was started without one
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        sys.stdout.write(text.encode("utf-8", "backslashreplace").decode() + "\n")
        sys.stdout.flush()
    except OSError as error:
        if sys.stdout is not None:
            # what it still holds would be tried again at the end, with a traceback
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise DeviceError(f"standard output: {error.strerror or error}") from error


def _fail(message: str, code: int) -> NoReturn:
    if sys.stderr is not None:
        with contextlib.suppress(OSError):  # a terminal that is gone
            sys.stderr.write(f"skerry-agent: {' '.join(message.split())}\n")
            sys.stderr.flush()
    raise SystemExit(code)


if __name__ == "__main__":
    main()
