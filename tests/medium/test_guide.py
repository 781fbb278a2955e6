"""The guide names what the code can say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edge_agent.device.config import AgentSettings
from edge_agent.update.errors import Failed, Refused, TransferFailed, UpdateError

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "updates.md"


def leaves(kind: type[UpdateError]) -> Iterator[type[UpdateError]]:
    for each in kind.__subclasses__():
        yield each
        yield from leaves(each)


def test_every_reason_stands_in_the_guide() -> None:
    text = GUIDE.read_text()
    # the causes below these have slugs of their own
    general = (Refused, Failed, TransferFailed)
    reasons = {each.reason for each in leaves(UpdateError) if each not in general}
    assert {reason for reason in reasons if f"`{reason}`" not in text} <= {"failed"}


def test_every_setting_of_updates_stands_in_the_guide() -> None:
    text = GUIDE.read_text()
    settings = [name for name in AgentSettings.model_fields if name.startswith("update_")]
    assert len(settings) > 5
    assert [name for name in settings if f"| `{name}` |" not in text] == []
