"""Hardware profiles: what a class of devices is, so that a model can be fitted to it.

Owns the form of `hardware_profiles/*.yaml`, their lookup, and which profile a machine belongs to.

Rules:
    * Every figure carries its source.  An assumption says that it is one.
    * A device belongs to a profile by its instruction set (CPU flags), board and accelerator,
      never by the marketing name of its processor.
    * Code for a profile may use only such flags as its match rule asks for.
    * A `live` profile has no figures in its file: loading it reads them from this machine.

It does not measure anything.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Generic, Literal, Self, TypeVar

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

ProfilePrecision = Literal["fp32", "fp16", "bf16", "int8", "int4"]

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
        boards: phrases, of which the board's text (device tree or DMI) must have one as whole
            words ("NUC14RV*": one that begins so); empty matches any.
        accelerators: the same of the names that the accelerators' drivers give.
        max_cores: most cores that the machine may have; any number where it is 0.
        priority: the highest matching profile wins.
    """

    machines: Annotated[tuple[str, ...], Field(min_length=1)]
    flags: tuple[str, ...] = ()
    boards: tuple[str, ...] = ()
    accelerators: tuple[str, ...] = ()
    max_cores: Annotated[int, Field(ge=0)] = 0
    priority: int = 0


class Accelerator(_Model):
    """What computes beside the processor.

    Attributes:
        name: as its maker writes it.
        memory_mib: memory of its own; `None` where it shares the device's.
        runtimes: runtimes of Skerry that use it; empty where none does yet.
        source: of the name and of what it is.
    """

    kind: Literal["gpu", "npu"]
    name: str
    memory_mib: Figure[Annotated[int, Field(ge=1)]] | None = None
    runtimes: tuple[RuntimeName, ...] = ()
    source: Annotated[str, Field(min_length=1)]


class HardwareProfile(_Model):
    """A class of devices.

    Attributes:
        isa: CPU flags that code for this profile may use.
        cores: cores as Linux counts them; two threads of one core are two.
        clock_ghz: highest sustained clock of the fastest cores.
        memory_mib: memory of the device.
        reserved_mib: what the system and the agent need of it.
        storage_gib: the disk that the device is planned with.
        providers: execution providers of ONNX Runtime that the device can use, best first.
        precisions: of the arithmetic that the hardware has instructions for; others are converted.
        threads: intra-op threads that a model is run with; the number of cores where it is 0.
        runtimes: runtimes that an agent of this profile has.
        power_w: whole device under load.
        price_usd: of one device, bought, or of a year of renting it (`price_for`).
        notes: what must be known beside the figures.
    """

    name: Slug
    title: str
    live: bool = False
    match: Match | None = None
    isa: Figure[tuple[str, ...]] | None = None
    cores: Figure[Annotated[int, Field(ge=1)]] | None = None
    clock_ghz: Figure[Annotated[float, Field(gt=0)]] | None = None
    memory_mib: Figure[Annotated[int, Field(ge=1)]] | None = None
    reserved_mib: Figure[Annotated[int, Field(ge=0)]] | None = None
    storage_gib: Figure[Annotated[float, Field(gt=0)]] | None = None
    accelerator: Accelerator | None = None
    providers: Figure[tuple[str, ...]] | None = None
    precisions: Figure[tuple[ProfilePrecision, ...]] | None = None
    power_w: Figure[Annotated[float, Field(gt=0)]] | None = None
    price_usd: Figure[Annotated[float, Field(gt=0)]] | None = None
    price_for: Literal["device", "year"] = "device"
    threads: Annotated[int, Field(ge=0, le=256)] = 0
    runtimes: Annotated[tuple[RuntimeName, ...], Field(min_length=1)]
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        figures = {"match": self.match, "isa": self.isa, "cores": self.cores}
        figures["memory_mib"] = self.memory_mib
        absent = [name for name, figure in figures.items() if figure is None]
        if absent and not self.live:
            raise ValueError(f"a profile that is not live needs {', '.join(absent)}")
        if (usable := self.usable_mib) is not None and usable <= 0:
            raise ValueError("reserved_mib leaves no memory")
        return self

    @property
    def flags(self) -> frozenset[str]:
        """CPU flags that code for this profile may use."""
        return frozenset(self.isa.value) if self.isa else frozenset()

    @property
    def machine(self) -> str:
        """The architecture as Linux names it: `x86_64`, `aarch64`, …"""
        return canonical_machine(self.match.machines[0]) if self.match else ""

    @property
    def is_arm(self) -> bool:
        return self.machine == "aarch64"

    @property
    def has_int8_dot_product(self) -> bool:
        """Whether int8 products add up without saturating at 16 bits."""
        return self.is_arm or bool(self.flags & VNNI_FLAGS)

    @property
    def usable_mib(self) -> int | None:
        """Memory for processes with a model; `None` where the profile does not say."""
        if self.memory_mib is None:
            return None
        return self.memory_mib.value - (self.reserved_mib.value if self.reserved_mib else 0)

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
            machine=canonical_machine(platform.machine()),
            flags=frozenset(cpu_flags()),
            cores=len(os.sched_getaffinity(0)),
            memory_mib=psutil.virtual_memory().total >> 20,
        )


def list_profiles(directory: Path = PROFILE_DIRECTORY) -> list[str]:
    """Names of the profiles in `directory`, sorted."""
    return sorted(path.stem for path in directory.glob("*.yaml"))


def read_profile(path: Path) -> HardwareProfile:
    """The profile in the file at `path`, as it stands there.

    Raises:
        ConfigError: the file cannot be read or does not fit; its name is not the profile's; or the
            profile lets code use flags that its match rule does not ask for.
    """
    document = Document.read(path)
    profile = document.validate(HardwareProfile)
    if profile.name != path.stem:
        raise document.error(("name",), f"the file of this profile must be {profile.name}.yaml")
    asked = frozenset(profile.match.flags) if profile.match else frozenset()
    if unsure := sorted(profile.flags - asked):
        raise document.error(
            ("isa",),
            f"match does not ask for {', '.join(unsure)}: "
            "a device without it would be given code that it cannot run",
        )
    return profile


def read_profiles(directory: Path = PROFILE_DIRECTORY) -> list[HardwareProfile]:
    """All profiles in `directory` as they stand there, sorted by name.

    Raises:
        ConfigError: a file does not fit.
    """
    return [read_profile(directory / f"{name}.yaml") for name in list_profiles(directory)]


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
    profile = read_profile(path)
    return _filled(profile, host or Host.here()) if profile.live else profile


def _filled(profile: HardwareProfile, host: Host) -> HardwareProfile:
    source = "read from this machine"
    return profile.model_copy(
        update={
            "precisions": Figure[tuple[ProfilePrecision, ...]](
                value=_precisions(host), source="by the CPU flags of this machine"
            ),
            "match": Match(machines=(host.machine,), flags=tuple(sorted(host.flags))),
            "isa": Figure[tuple[str, ...]](value=tuple(sorted(host.flags)), source=source),
            "cores": Figure[int](value=host.cores, source=source),
            "memory_mib": Figure[int](value=host.memory_mib, source=source),
        }
    )


def _precisions(host: Host) -> tuple[ProfilePrecision, ...]:
    """Precisions that the flags have arithmetic for."""
    found: list[ProfilePrecision] = ["fp32"]
    if host.flags & {"avx512_fp16", "asimdhp"}:
        found.append("fp16")
    if host.flags & {"avx512_bf16", "amx_bf16", "bf16"}:
        found.append("bf16")
    return (*found, "int8")


def canonical_machine(machine: str) -> str:
    """`uname -m` in Linux's spelling: "arm64" and "aarch64" are one."""
    return _ALIASES.get(machine.lower(), machine.lower())
