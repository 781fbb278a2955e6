from __future__ import annotations

from pathlib import Path

from edge_agent.runtime.hardware import accelerators, board


def put(root: Path, place: str, content: bytes) -> None:
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_a_board_is_named_by_its_device_tree_with_what_it_is_compatible_with(
    tmp_path: Path,
) -> None:
    put(tmp_path, "proc/device-tree/model", b"Radxa ROCK 5B\0")
    put(tmp_path, "proc/device-tree/compatible", b"radxa,rock-5b\0rockchip,rk3588\0")
    put(tmp_path, "sys/class/dmi/id/product_name", b"of no account\n")
    assert board(tmp_path) == "Radxa ROCK 5B radxa,rock-5b rockchip,rk3588"


def test_a_pc_is_named_by_dmi(tmp_path: Path) -> None:
    put(tmp_path, "sys/class/dmi/id/sys_vendor", b"ASUSTeK COMPUTER INC.\n")
    put(tmp_path, "sys/class/dmi/id/product_name", b"NUC14RVH\n")
    assert board(tmp_path) == "ASUSTeK COMPUTER INC. NUC14RVH"


def test_gpus_and_npus_are_named_by_their_drivers(tmp_path: Path) -> None:
    for slot, name in (("0000:3b:00.0", "NVIDIA L4"), ("0000:86:00.0", "Tesla T4")):
        text = f"Model: \t\t {name}\nIRQ:   \t\t 42\nGPU UUID: \t GPU-1\n"
        put(tmp_path, f"proc/driver/nvidia/gpus/{slot}/information", text.encode())
    driver = tmp_path / "sys/bus/pci/drivers/intel_vpu"
    driver.mkdir(parents=True)
    device = tmp_path / "sys/class/accel/accel0/device"
    device.mkdir(parents=True)
    (device / "driver").symlink_to(driver)
    assert accelerators(tmp_path) == ("NVIDIA L4", "Tesla T4", "Intel NPU")


def test_what_the_kernel_does_not_tell_is_absent(tmp_path: Path) -> None:
    assert board(tmp_path) == ""
    assert accelerators(tmp_path) == ()
