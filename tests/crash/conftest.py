"""A control plane around real agents, as in their own tests."""

from tests.agent.conftest import agents, plane

__all__ = ["agents", "plane"]
