"""Topics name a device, and the gateway that speaks for it; anything else is refused."""

from __future__ import annotations

import pytest

from edge_agent.wire import topics
from edge_agent.wire.errors import UnknownTopic


@pytest.mark.parametrize("gateway", ["", "box-1"])
def test_a_topic_is_read_back_as_it_was_made(gateway: str) -> None:
    for channel in ("state", "up/report", "fetch/request"):
        parsed = topics.parse(topics.of("d-1", channel, gateway))
        assert (parsed.device, parsed.channel, parsed.gateway) == ("d-1", channel, gateway)


@pytest.mark.parametrize(
    "topic",
    [
        "skerry/v1/g/box/d/state",
        "skerry/v1/g/box/d//state",
        "skerry/v1/g//d/dev/state",
        "skerry/v1/g/box/x/dev/state",
        "skerry/v1/g/+/d/dev/state",
        "skerry/v1/d/UP/state",
        "skerry/v2/d/dev/state",
        "skerry/v1/host",
    ],
)
def test_what_is_no_topic_of_a_device_is_refused(topic: str) -> None:
    with pytest.raises(UnknownTopic):
        topics.parse(topic)
