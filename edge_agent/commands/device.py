"""`skerry-agent enrol`, `run` and `score`."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
from pathlib import Path
from typing import Final, Literal

from edge_agent.commands.errors import BadScoring
from edge_agent.commands.output import say
from edge_agent.device.errors import DeviceError

log = logging.getLogger("skerry.identity")

RESTART: Final = 75
"""Exit code that asks a service manager for a new start.  Source: EX_TEMPFAIL, sysexits.h."""


def enrol(directory: Path, claim_path: Path, name: str | None, again: bool) -> int:
    """Make this device a member of a fleet, or let it come back under its name."""
    from edge_agent.device import enrol as enrolment
    from edge_agent.device.config import load_settings
    from edge_agent.device.inventory import collect

    claim = enrolment.read_claim(claim_path)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    key_uri = load_settings(directory).key
    if again:
        identity = enrolment.come_back(directory, claim, collect(directory), key_uri=key_uri)
    else:
        identity = enrolment.enrol(directory, claim, collect(directory), name, key_uri=key_uri)
    member = identity.membership
    say(f"enrolled as {member.device_id} (profile {member.profile})")
    return 0


def run(directory: Path) -> int:
    """Serve, update and report until stopped."""
    from edge_agent import logs
    from edge_agent.agent import run_agent
    from edge_agent.device.config import load_settings
    from edge_agent.device.errors import KeyUnavailable
    from edge_agent.device.identity import load_identity
    from edge_agent.device.keys import prepare
    from edge_agent.link.errors import LinkError
    from edge_agent.serve import ServeError

    settings = load_settings(directory)
    identity = load_identity(directory)
    logs.configure(settings.log_level, settings.log_format)
    try:
        prepare(settings.key, identity.key_path)
    except KeyUnavailable as error:  # without its key it is offline, and serves all the same
        log.error("identity.key_unavailable cause=%s", error)
    try:
        again = run_agent(identity, settings)
    except (LinkError, ServeError) as error:
        raise DeviceError(str(error)) from error
    except sqlite3.DatabaseError as error:
        raise DeviceError(f"{directory}: a database of the agent is damaged ({error})") from error
    return _start_anew(settings.restart) if again else 0


def _start_anew(how: Literal["exec", "exit"]) -> int:
    """What a command to restart does once the agent has ended in order.

    Replacing the program keeps the process: its number, its service, its limits and its output
    stay, so any service manager, or none, will do.
    """
    if how == "exec":
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 (ourselves, with our own arguments)
    return RESTART


def score(directory: Path, model: str | None, source: Path, target: Path) -> int:
    """Answer a data set by an installed model."""
    from edge_agent import score as scoring
    from edge_agent.pipeline import PipelineError
    from edge_agent.pipeline.errors import DatasetError, ParquetUnavailable
    from edge_agent.predictor import NoSuchModel, NothingInstalled, Predictor, PredictorError

    try:
        with scoring.ending_in_order(), Predictor(directory, model) as predictor:
            scored = scoring.score(predictor, source, target)
    except ParquetUnavailable as error:
        raise DeviceError(str(error)) from error
    except (NothingInstalled, NoSuchModel, scoring.BadTarget, DatasetError) as error:
        raise BadScoring(str(error)) from error
    except (PredictorError, PipelineError) as error:
        raise DeviceError(str(error)) from error
    except OSError as error:
        raise DeviceError(f"{error.filename or target}: {error.strerror or error}") from error
    answered = scored.rows - scored.errors
    say(
        f"{scored.rows:,} rows in {scoring.duration(scored.elapsed_s)}: {answered:,} answered, "
        f"{scored.errors:,} with errors, in {target}"
    )
    return 0 if answered or not scored.rows else 1
