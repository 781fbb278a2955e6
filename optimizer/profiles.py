"""Hardware profiles: what a class of devices is, so that a model can be fitted to it.

Owns the form of `hardware_profiles/*.yaml`, their lookup, and which profile a machine belongs to.

Rules:
    * Every figure carries its source.  An assumption says that it is one.
    * A device belongs to a profile by its instruction set (CPU flags) and board, never by the
      marketing name of its processor.
    * A `live` profile has no figures in its file: loading it reads them from this machine.

It does not measure anything.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Generic, Self, TypeVar

import psutil
from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge_agent.runtime.cpu import cpu_flags
from edge_agent.wire.ids import Slug, is_slug
from edge_agent.wire.manifest import RuntimeName
from optimizer.config_file import Document
from optimizer.errors import UnknownProfile, did_you_mean

PROFILE_DIRECTORY: Final = Path(__file__).resolve().parent.parent / "hardware_profiles"
THIS_MACHINE: Final = "this-machine"

VNNI_FLAGS: Final = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
"""Flags with which x86 adds int8 products into 32 bits, so that nothing saturates on the way."""

_ALIASES: Final = {"amd64": "x86_64", "arm64": "aarch64"}

T = TypeVar("T")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(_Model, Generic[T]):
    """A figure and where it comes from."""

    value: T
    source: Annotated[str, Field(min_length=1)]


class Match(_Model):
    """Which machines a profile is for.

    Attributes:
        machines: values of `uname -m`, at least one.
        flags: CPU flags that must all be there.
        board: text that the device tree's model must contain; empty matches any.
        priority: the highest matching profile wins.
    """

    machines: Annotated[tuple[str, ...], Field(min_length=1)]
    flags: tuple[str, ...] = ()
    board: str = ""
    priority: int = 0


class HardwareProfile(_Model):
    """A class of devices.

    Attributes:
        isa: CPU flags that code for this profile may use.
        cores: cores that the model may use.
        memory_mib: memory that the process may use.
        threads: intra-op threads that a model is run with; the number of cores where it is 0.
        runtimes: runtimes that an agent of this profile has.
        power_w: whole device under load.
        price_usd: one device.
    """

    name: Slug
    title: str
    live: bool = False
    match: Match | None = None
    isa: Figure[tuple[str, ...]] | None = None
    cores: Figure[Annotated[int, Field(ge=1)]] | None = None
    memory_mib: Figure[Annotated[int, Field(ge=1)]] | None = None
    power_w: Figure[Annotated[float, Field(gt=0)]] | None = None
    price_usd: Figure[Annotated[float, Field(gt=0)]] | None = None
    threads: Annotated[int, Field(ge=0, le=256)] = 0
    runtimes: Annotated[tuple[RuntimeName, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        figures = {"match": self.match, "isa": self.isa, "cores": self.cores}
        figures["memory_mib"] = self.memory_mib
        absent = [name for name, figure in figures.items() if figure is None]
        if absent and not self.live:
            raise ValueError(f"a profile that is not live needs {', '.join(absent)}")
        return self

    @property
    def flags(self) -> frozenset[str]:
        """CPU flags that code for this profile may use."""
        return frozenset(self.isa.value) if self.isa else frozenset()

    @property
    def machine(self) -> str:
        """The architecture as Linux names it: `x86_64`, `aarch64`, …"""
        return _canonical(self.match.machines[0]) if self.match else ""

    @property
    def is_arm(self) -> bool:
        return self.machine == "aarch64"

    @property
    def has_int8_dot_product(self) -> bool:
        """Whether int8 products add up without saturating at 16 bits."""
        return self.is_arm or bool(self.flags & VNNI_FLAGS)

    @property
    def model_threads(self) -> int:
        """Intra-op threads to run a model with."""
        return self.threads or (self.cores.value if self.cores else 1)


@dataclass(frozen=True)
class Host:
    """The machine that measures: what can be claimed for a profile depends on it."""

    machine: str
    flags: frozenset[str]
    cores: int
    memory_mib: int

    @classmethod
    def here(cls) -> Host:
        """The machine this process runs on; cores are those that it may use."""
        return cls(
            machine=_canonical(platform.machine()),
            flags=frozenset(cpu_flags()),
            cores=len(os.sched_getaffinity(0)),
            memory_mib=psutil.virtual_memory().total >> 20,
        )


def list_profiles(directory: Path = PROFILE_DIRECTORY) -> list[str]:
    """Names of the profiles in `directory`, sorted."""
    return sorted(path.stem for path in directory.glob("*.yaml"))


def load_profile(
    name: str, directory: Path = PROFILE_DIRECTORY, host: Host | None = None
) -> HardwareProfile:
    """The profile `name`; a live one is filled with the figures of `host` (default: here).

    Raises:
        UnknownProfile: no such file in `directory`.
        ConfigError: the file does not fit.
    """
    path = directory / f"{name}.yaml"
    if not is_slug(name) or not path.is_file():
        hint = did_you_mean(name, list_profiles(directory))
        raise UnknownProfile(f"no hardware profile '{name}'{hint}")
    document = Document.read(path)
    profile = document.validate(HardwareProfile)
    if profile.name != name:
        raise document.error(("name",), f"the file of this profile must be {profile.name}.yaml")
    return _filled(profile, host or Host.here()) if profile.live else profile


def detect(
    flags: Collection[str],
    machine: str,
    board: str = "",
    directory: Path = PROFILE_DIRECTORY,
) -> HardwareProfile | None:
    """The most specific profile that a device belongs to, or `None`.

    Args:
        flags: the device's CPU flags, as `edge_agent.runtime.cpu_flags` names them.
        machine: its `uname -m`.
        board: the model that its device tree gives, where it has one.
    """
    fitting: list[tuple[int, HardwareProfile]] = []
    for name in list_profiles(directory):
        profile = Document.read(directory / f"{name}.yaml").validate(HardwareProfile)
        match = profile.match
        if (
            match is not None
            and _canonical(machine) in map(_canonical, match.machines)
            and set(match.flags) <= set(flags)
            and match.board in board
        ):
            fitting.append((match.priority, profile))
    return max(fitting, key=lambda pair: pair[0])[1] if fitting else None


def _filled(profile: HardwareProfile, host: Host) -> HardwareProfile:
    source = "read from this machine"
    return profile.model_copy(
        update={
            "match": Match(machines=(host.machine,), flags=tuple(sorted(host.flags))),
            "isa": Figure[tuple[str, ...]](value=tuple(sorted(host.flags)), source=source),
            "cores": Figure[int](value=host.cores, source=source),
            "memory_mib": Figure[int](value=host.memory_mib, source=source),
        }
    )


def _canonical(machine: str) -> str:
    return _ALIASES.get(machine.lower(), machine.lower())
