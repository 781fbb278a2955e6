"""Which board this machine is and which accelerators it has, as the kernel names them.

A board is named by the device tree (ARM boards) or by DMI (PCs), an accelerator by the driver that
runs it.  Neither is ever guessed from the processor's marketing name.  What the kernel does not
tell is absent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_ROOT: Final = Path("/")
_DEVICE_TREE: Final = ("proc/device-tree/model", "proc/device-tree/compatible")
_DMI: Final = tuple(
    f"sys/class/dmi/id/{name}" for name in ("sys_vendor", "product_name", "board_name")
)
_NVIDIA: Final = "proc/driver/nvidia/gpus"
_ACCEL: Final = "sys/class/accel"
_ACCEL_NAMES: Final = {"intel_vpu": "Intel NPU"}
"""Drivers of the kernel's `accel` class whose devices have a name of their own."""

_MAX_TEXT: Final = 512


def board(root: Path = _ROOT) -> str:
    """Model of the board and what it is compatible with, e.g. `Radxa ROCK 5B radxa,rock-5b
    rockchip,rk3588`; empty where the kernel does not tell.

    Args:
        root: where `/proc` and `/sys` are.
    """
    for places in (_DEVICE_TREE, _DMI):
        if words := [word for place in places if (word := _text(root / place))]:
            return " ".join(words)[:_MAX_TEXT]
    return ""


def accelerators(root: Path = _ROOT) -> tuple[str, ...]:
    """Names of the accelerators that have a driver: NVIDIA GPUs, then devices of class `accel`."""
    return (*_nvidia(root / _NVIDIA), *_accel(root / _ACCEL))


def _nvidia(directory: Path) -> list[str]:
    """`Model:` of each GPU that NVIDIA's driver runs.

    Source: NVIDIA driver README, "The /proc file system": /proc/driver/nvidia/gpus/*/information.
    """
    names = []
    for place in _children(directory):
        for line in _text(place / "information").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Model" and value.strip():
                names.append(value.strip())
    return names


def _accel(directory: Path) -> list[str]:
    """A name for each device of the kernel's compute accelerators.

    Source: kernel documentation, "Compute Accelerators": devices are /sys/class/accel/accel*.
    """
    names = []
    for place in _children(directory):
        driver = place / "device" / "driver"
        if driver.exists():
            name = driver.resolve().name
            names.append(_ACCEL_NAMES.get(name, name))
    return names


def _children(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    """The file's text without the NULs that end the device tree's strings; empty if unreadable."""
    try:
        data = path.read_bytes()[: 16 * _MAX_TEXT]
    except OSError:
        return ""
    return data.replace(b"\0", b" ").decode("utf-8", "replace").strip()
