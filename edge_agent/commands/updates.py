"""`skerry-agent status`, `pause` and `resume`: the running agent's updates."""

from __future__ import annotations

import json
from pathlib import Path

from edge_agent.commands import admin
from edge_agent.commands.output import say


def status(directory: Path) -> int:
    """What the running agent says of itself, as JSON."""
    say(json.dumps(admin.status(directory), indent=2))
    return 0


def pause(directory: Path) -> int:
    """Begin no update until resumed, across restarts too."""
    admin.order(directory, "pause")
    say("updates are paused; what serves goes on serving")
    return 0


def resume(directory: Path) -> int:
    """Go on with updates."""
    admin.order(directory, "resume")
    say("updates go on")
    return 0
