"""The command `skerry-agent`: enrol, run, status, install, pause, resume, score.

What goes wrong is one line on standard error: exit code 2 when the person gave something wrong,
1 when the machine or the control plane is at fault, 130 when the person stopped it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from edge_agent.commands import device, updates
from edge_agent.commands.errors import BAD_INPUT
from edge_agent.commands.output import fail
from edge_agent.device.errors import DeviceError

INTERRUPTED: Final = 130


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
        fail(str(error), 2)
    except DeviceError as error:
        fail(str(error), 1)
    except OSError as error:
        fail(f"{error.filename or options.dir}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        fail("stopped", INTERRUPTED)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="skerry-agent", description="Serves signed models on this device.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    enrol = commands.add_parser("enrol", help="make this device a member of a fleet")
    enrol.add_argument("--claim", type=Path, required=True, help="claim file of the control plane")
    enrol.add_argument("--name", help="wished name: a-z, 0-9 and '-'")
    enrol.add_argument(
        "--again", action="store_true", help="an enrolled device comes back, by a claim made for it"
    )
    commands.add_parser("run", help="serve, update and report until stopped")
    commands.add_parser("status", help="what the running agent says of itself, as JSON")
    install = commands.add_parser("install", help="install from a directory, such as a USB stick")
    install.add_argument(
        "--from",
        dest="source",
        type=Path,
        required=True,
        help="directory that 'skerry export-bundle' wrote",
    )
    commands.add_parser("pause", help="begin no update until 'resume', across restarts too")
    commands.add_parser("resume", help="go on with updates")
    score = commands.add_parser("score", help="answer a data set by an installed model")
    score.add_argument("--model", help="which one, where several are installed")
    score.add_argument(
        "--input", type=Path, required=True, help="images in a directory, .npz, .parquet or .jsonl"
    )
    score.add_argument("--output", type=Path, required=True, help=".parquet or .jsonl")
    for command in commands.choices.values():
        command.add_argument("--dir", type=Path, required=True, help="directory of this device")
    return parser


def _run(options: argparse.Namespace) -> int:
    match options.command:
        case "enrol":
            return device.enrol(options.dir, options.claim, options.name, options.again)
        case "run":
            return device.run(options.dir)
        case "score":
            return device.score(options.dir, options.model, options.input, options.output)
        case "install":
            from edge_agent.commands.install import install

            return install(options.dir, options.source)
        case "pause":
            return updates.pause(options.dir)
        case "resume":
            return updates.resume(options.dir)
        case _:
            return updates.status(options.dir)


if __name__ == "__main__":
    main()
