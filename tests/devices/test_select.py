from __future__ import annotations

from fleet.devices.select import DeviceFilter, DeviceRef

DEVICES = [
    DeviceRef("a", "pi", {"site": "oslo", "line": "1"}),
    DeviceRef("b", "pi", {"site": "busan"}),
    DeviceRef("c", "x86", {"site": "oslo"}),
    DeviceRef("d", "pi", {"site": "oslo", "line": "1"}, revoked=True),
]


def ids(devices: list[DeviceRef]) -> str:
    return "".join(device.id for device in devices)


def test_empty_filter_means_every_device_that_is_not_revoked() -> None:
    assert ids(DeviceFilter().select(DEVICES)) == "abc"


def test_device_must_carry_every_label() -> None:
    assert ids(DeviceFilter(labels={"site": "oslo"}).select(DEVICES)) == "ac"
    assert ids(DeviceFilter(labels={"site": "oslo", "line": "1"}).select(DEVICES)) == "a"


def test_any_of_the_profiles_will_do() -> None:
    both = DeviceFilter(frozenset({"pi", "x86"}), {"site": "oslo"})
    assert ids(both.select(DEVICES)) == "ac"
    assert ids(DeviceFilter(frozenset({"x86"})).select(DEVICES)) == "c"
