"""`skerry profiles list|show|detect|validate`: what hardware a model can be fitted to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloud.cli.options import JsonOption
from cloud.cli.output import as_json, console, errors, table
from cloud.errors import UserError
from optimizer.errors import OptimizerError
from optimizer.profiles import (
    PROFILE_DIRECTORY,
    Accelerator,
    Figure,
    HardwareProfile,
    ProfilePrecision,
)

profiles = typer.Typer(no_args_is_help=True, help="Hardware profiles.")

ProfilesOption = Annotated[
    Path, typer.Option("--profiles", help="Directory of profiles; by default those of Skerry.")
]
DASH = "–"

Precisions = Figure[tuple[ProfilePrecision, ...]]


@profiles.command("list")
def list_all(directory: ProfilesOption = PROFILE_DIRECTORY, json: JsonOption = False) -> None:
    """Every hardware profile."""
    from optimizer.profiles import list_profiles, load_profile

    found = [load_profile(name, directory) for name in list_profiles(_directory(directory))]
    if json:
        as_json(found)
        return
    table(
        "hardware profiles",
        ("name", "cores", "memory", "accelerator", "precisions", "power", "price", "title"),
        [
            (
                profile.name,
                plain(profile.cores),
                memory(profile.memory_mib),
                _accelerator(profile.accelerator),
                plain(profile.precisions),
                plain(profile.power_w, "W"),
                price(profile),
                profile.title,
            )
            for profile in found
        ],
    )


@profiles.command("show")
def show(
    name: str, directory: ProfilesOption = PROFILE_DIRECTORY, json: JsonOption = False
) -> None:
    """One profile with the source of each figure."""
    from optimizer.profiles import load_profile

    profile = load_profile(name, _directory(directory))
    if json:
        as_json(profile)
        return
    table(f"{profile.name}: {profile.title}", ("what", "value", "source"), _facts(profile))
    for note in profile.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


@profiles.command("detect")
def detect_here(directory: ProfilesOption = PROFILE_DIRECTORY) -> None:
    """The most specific profile that this machine matches, and why."""
    from optimizer.detection import Traits, weigh
    from optimizer.profiles import read_profiles

    traits = Traits.here()
    fits = weigh(traits, read_profiles(_directory(directory)))
    if not fits or not fits[0].fits:
        near = f"; nearest is {fits[0].profile.name}, without {fits[0].missing[0]}" if fits else ""
        raise UserError(
            f"this machine ({traits.machine}) matches no profile{near}; "
            "describe it in a YAML file of your own"
        )
    best = fits[0]
    console.print(f"{best.profile.name}: {best.profile.title}", markup=False, soft_wrap=True)
    _say("matched", "; ".join(best.matched))
    following = next((fit for fit in fits[1:] if fit.fits), None)
    if following is not None:
        _say("next best", f"{following.profile.name}, which asks for less")
    closer = next((fit for fit in fits[1:] if not fit.fits), None)
    if closer is not None:
        _say("not", f"{closer.profile.name}: {'; '.join(closer.missing)} is not here")


@profiles.command("validate")
def validate(files: Annotated[list[Path], typer.Argument(help="YAML files to check.")]) -> None:
    """Check profiles' YAML files; exit code 2 where one is wrong."""
    from optimizer.profiles import read_profile

    wrong = 0
    for path in files:
        try:
            profile = read_profile(path)
        except OptimizerError as error:
            errors.print(f"skerry: {error}", markup=False, soft_wrap=True)
            wrong += 1
        else:
            console.print(f"{path}: profile {profile.name}: good", markup=False, soft_wrap=True)
    if wrong:
        raise typer.Exit(2)


def plain(
    figure: Figure[int] | Figure[float] | Figure[tuple[str, ...]] | Precisions | None,
    unit: str = "",
) -> str:
    """The value of a figure with its unit; a dash where there is none."""
    if figure is None:
        return DASH
    value = figure.value
    text = ", ".join(value) if isinstance(value, tuple) else f"{value:,g}"
    return f"{text} {unit}".rstrip()


def memory(figure: Figure[int] | None) -> str:
    """Memory in whole or tenth GiB."""
    return DASH if figure is None else f"{figure.value / 1024:.3g} GiB"


def price(profile: HardwareProfile) -> str:
    """Price of one device, or of a year of renting it."""
    if profile.price_usd is None:
        return DASH
    year = " a year" if profile.price_for == "year" else ""
    return f"${profile.price_usd.value:,.0f}{year}"


def _facts(profile: HardwareProfile) -> list[tuple[str, str, str]]:
    """What, value and source of all that a profile says."""
    figures = [
        ("CPU flags", plain(profile.isa), profile.isa),
        ("cores", plain(profile.cores), profile.cores),
        ("clock", plain(profile.clock_ghz, "GHz"), profile.clock_ghz),
        ("memory", plain(profile.memory_mib, "MiB"), profile.memory_mib),
        ("reserved", plain(profile.reserved_mib, "MiB"), profile.reserved_mib),
        ("storage", plain(profile.storage_gib, "GiB"), profile.storage_gib),
        ("providers", plain(profile.providers), profile.providers),
        ("precisions", plain(profile.precisions), profile.precisions),
        ("power", plain(profile.power_w, "W"), profile.power_w),
        ("price", price(profile), profile.price_usd),
    ]
    rows = [(what, value, figure.source) for what, value, figure in figures if figure is not None]
    if (accelerator := profile.accelerator) is not None:
        rows.append(("accelerator", accelerator.name, accelerator.source))
        if accelerator.memory_mib is not None:
            own = accelerator.memory_mib
            rows.append(("its memory", plain(own, "MiB"), own.source))
    rows.append(("runtimes", ", ".join(profile.runtimes), "what an agent of this profile installs"))
    rows.append(("threads", str(profile.model_threads), "what a model of this profile is run with"))
    rows.append(("match", _rule(profile), "how a device's inventory finds this profile"))
    return rows


def _rule(profile: HardwareProfile) -> str:
    match = profile.match
    if match is None or profile.live:
        return "asked for by name only"
    parts = [f"machine {' or '.join(match.machines)}"]
    parts += [f"flags {', '.join(match.flags)}"] if match.flags else []
    parts += [f"board {' or '.join(match.boards)}"] if match.boards else []
    parts += [f"accelerator {' or '.join(match.accelerators)}"] if match.accelerators else []
    parts += [f"at most {match.max_cores} cores"] if match.max_cores else []
    return "; ".join(parts)


def _accelerator(found: Accelerator | None) -> str:
    if found is None:
        return DASH
    own = f", {memory(found.memory_mib)}" if found.memory_mib else ""
    unused = "" if found.runtimes else " (not used)"
    return f"{found.name}{own}{unused}"


def _directory(directory: Path) -> Path:
    if not directory.is_dir():
        raise UserError(f"{directory} is no directory of profiles")
    return directory


def _say(what: str, text: str) -> None:
    console.print(f"  {what}: {text}", markup=False, soft_wrap=True)
