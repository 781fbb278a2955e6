"""The MQTT topics.  Every topic of a device carries its id, which the broker enforces.

skerry/v1/d/DEVICE/state          device → cloud, retained: birth and will
skerry/v1/d/DEVICE/up/KIND        device → cloud: journalled messages, QoS 1
skerry/v1/d/DEVICE/ack            cloud → device: what has been committed
skerry/v1/d/DEVICE/desired        cloud → device, retained: the desired twin
skerry/v1/d/DEVICE/lab            cloud → device, retained: a measure order; empty when it ended
skerry/v1/d/DEVICE/command        cloud → device: do this once, until it expires
skerry/v1/d/DEVICE/fetch/request  device → cloud: a metadata file, please
skerry/v1/d/DEVICE/fetch/reply    cloud → device: its bytes, or why not
skerry/v1/d/DEVICE/chunk/request  device → cloud: these chunks, please
skerry/v1/d/DEVICE/chunk/reply    cloud → device: one chunk a message, QoS 0
skerry/v1/d/DEVICE/renew/request  device → cloud: another certificate, please; or: I use this one
skerry/v1/d/DEVICE/renew/reply    cloud → device: the certificate, or why not
skerry/v1/host                    cloud → all, retained: the control plane's state

A gateway speaks for the devices below it, on one connection with its own certificate:

skerry/v1/g/GATEWAY/d/DEVICE/…    the same channels, without `lab`, `fetch` and `chunk`

The broker holds a gateway to its own id; which devices are below it, the control plane knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from edge_agent.wire.errors import UnknownTopic
from edge_agent.wire.ids import DeviceId, is_slug

PREFIX: Final = "skerry/v1"
HOST: Final = f"{PREFIX}/host"

UplinkKind = Literal["report", "sample", "correction", "metrics", "event", "measure", "command"]
UPLINK_KINDS: Final[tuple[UplinkKind, ...]] = get_args(UplinkKind)


def state(device: DeviceId | str) -> str:
    return f"{PREFIX}/d/{device}/state"


def uplink(device: DeviceId | str, kind: UplinkKind | Literal["+"]) -> str:
    return f"{PREFIX}/d/{device}/up/{kind}"


def ack(device: DeviceId | str) -> str:
    return f"{PREFIX}/d/{device}/ack"


def desired(device: DeviceId | str) -> str:
    return f"{PREFIX}/d/{device}/desired"


def lab(device: DeviceId | str) -> str:
    return f"{PREFIX}/d/{device}/lab"


def command(device: DeviceId | str) -> str:
    return f"{PREFIX}/d/{device}/command"


def fetch_request(device: DeviceId | str) -> str:
    return f"{PREFIX}/d/{device}/fetch/request"


def fetch_reply(device: DeviceId | str) -> str:
    return f"{PREFIX}/d/{device}/fetch/reply"


def chunk_request(device: DeviceId | str) -> str:
    return f"{PREFIX}/d/{device}/chunk/request"


def chunk_reply(device: DeviceId | str) -> str:
    return f"{PREFIX}/d/{device}/chunk/reply"


def of(device: DeviceId | str, channel: str, gateway: DeviceId | str = "") -> str:
    """Topic of a channel of `device`, which `gateway` speaks for, if one is named."""
    below = f"{PREFIX}/g/{gateway}" if gateway else PREFIX
    return f"{below}/d/{device}/{channel}"


def renew_request(device: DeviceId | str) -> str:
    return f"{PREFIX}/d/{device}/renew/request"


def renew_reply(device: DeviceId | str) -> str:
    return f"{PREFIX}/d/{device}/renew/reply"


def shared(group: str, topic_filter: str) -> str:
    """A shared subscription: each message reaches one member of `group`."""
    return f"$share/{group}/{topic_filter}"


WRITTEN_BY_DEVICE: Final = ("state", "up/+", "fetch/request", "chunk/request", "renew/request")
"""What a device may publish below its own id; the broker's access list is made of it."""

READ_BY_DEVICE: Final = (
    "ack",
    "desired",
    "lab",
    "command",
    "fetch/reply",
    "chunk/reply",
    "renew/reply",
)
"""Topic tails that a device may subscribe to below its own id."""


WRITTEN_BY_GATEWAY: Final = ("state", "up/+")
"""What a gateway may publish below its own id for each device."""

READ_BY_GATEWAY: Final = ("ack", "desired", "command")
"""Topic tails that a gateway may subscribe to below its own id for each device."""


@dataclass(frozen=True, slots=True)
class DeviceTopic:
    """A parsed device topic.

    Attributes:
        channel: the tail after the device's id, e.g. "up/sample".
        gateway: who speaks for the device; empty: it speaks for itself.
    """

    device: DeviceId
    channel: str
    gateway: DeviceId | Literal[""] = ""


def parse(topic: str) -> DeviceTopic:
    """Split a device topic.

    Raises:
        UnknownTopic: neither below `skerry/v1/d/` nor `skerry/v1/g/`, or an id is not a slug.
    """
    if topic.startswith(f"{PREFIX}/g/"):
        return _parse_below(topic)
    parts = topic.split("/", 4)
    if len(parts) != 5 or parts[:3] != ["skerry", "v1", "d"] or not is_slug(parts[3]):
        raise UnknownTopic(f"not a device topic: {topic[:120]!r}")
    return DeviceTopic(DeviceId(parts[3]), parts[4])


def _parse_below(topic: str) -> DeviceTopic:
    parts = topic.split("/", 6)
    if len(parts) != 7 or parts[4] != "d" or not (is_slug(parts[3]) and is_slug(parts[5])):
        raise UnknownTopic(f"not a topic of a gateway's device: {topic[:120]!r}")
    return DeviceTopic(DeviceId(parts[5]), parts[6], DeviceId(parts[3]))
