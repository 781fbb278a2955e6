"""Entry of the command `skerry`: assembles the sub-commands and turns errors into one line."""

from __future__ import annotations

import logging
import sys

import httpx
import typer
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError

from cloud.cli import (
    claim_commands,
    command_commands,
    control,
    device_commands,
    evidence_commands,
    export_commands,
    fleet_commands,
    gateway_commands,
    group_commands,
    keys,
    learning_commands,
    model_commands,
    optimize_commands,
    parity,
    plan_commands,
    profile_commands,
    rollout_commands,
    simulate_commands,
    trial_commands,
)
from cloud.cli.output import errors
from cloud.errors import SkerryError
from edge_agent.wire.base import describe
from fleet.client.errors import ApiError
from fleet.enrolment.errors import EnrolmentError
from fleet.simulate.errors import SimulationError
from optimizer.errors import OptimizerError

USAGE_ERROR: type[Exception] = typer.BadParameter.__bases__[0]
"""Every wrong option or command; typer carries click inside and gives this class no name."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train and quantise per hardware profile, ship signed versions, learn from the field.",
)
app.command()(control.up)
app.command()(control.down)
app.command()(control.run)
app.command()(control.processes)
app.command()(learning_commands.check)
app.command()(learning_commands.apply)
app.command()(learning_commands.build)
app.command()(learning_commands.retrain)
app.command()(learning_commands.report)
app.command()(optimize_commands.optimize)
app.command()(plan_commands.plan)
app.command()(fleet_commands.status)
app.command()(fleet_commands.audit)
app.command()(parity.parity)
app.command()(export_commands.export_bundle)
app.add_typer(learning_commands.jobs, name="jobs")
app.add_typer(learning_commands.drift, name="drift")
app.add_typer(profile_commands.profiles, name="profiles")
app.add_typer(model_commands.models, name="models")
app.add_typer(keys.keys, name="keys")
app.add_typer(claim_commands.claims, name="claims")
app.add_typer(device_commands.devices, name="devices")
app.add_typer(gateway_commands.gateways, name="gateways")
app.add_typer(command_commands.commands, name="commands")
rollout_commands.rollout.command("verify")(evidence_commands.verify_rollout)
app.add_typer(group_commands.groups, name="groups")
trial_commands.register(rollout_commands.rollout)
app.add_typer(rollout_commands.rollout, name="rollout")
app.add_typer(simulate_commands.simulate, name="simulate")
app.add_typer(fleet_commands.tokens, name="tokens")


def main() -> None:
    """Run the command; bad input is one line on standard error and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    for noisy in ("httpx", "httpcore", "alembic", "tuf"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        code = app(standalone_mode=False)
    except typer.Exit as leave:
        code = leave.exit_code
    except USAGE_ERROR as error:
        message = getattr(error, "format_message", error.__str__)()
        errors.print(f"skerry: {message}", markup=False, soft_wrap=True)
        code = 2
    except (SkerryError, OptimizerError, EnrolmentError, SimulationError, ApiError) as error:
        errors.print(f"skerry: {error}", markup=False, soft_wrap=True)
        code = 2
    except ValidationError as error:  # an option or a SKERRY_… variable outside its bounds
        errors.print(f"skerry: {describe(error)}", markup=False, soft_wrap=True)
        code = 2
    except OSError as error:  # a file or directory that cannot be read or written
        place = f"{error.filename}: " if error.filename else ""
        errors.print(f"skerry: {place}{error.strerror or error}", markup=False, soft_wrap=True)
        code = 2
    except DBAPIError as error:  # busy, away, or damaged
        errors.print(f"skerry: the database cannot be used: {error.orig}", markup=False)
        code = 2
    except httpx.TransportError as error:
        errors.print(f"skerry: the control plane does not answer: {error}", markup=False)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
