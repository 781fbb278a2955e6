from __future__ import annotations

import importlib

import pytest


@pytest.mark.parametrize("room", ["runtime", "pipeline", "measure", "drift", "serve"])
def test_a_room_exports_what_it_lists(room: str) -> None:
    module = importlib.import_module(f"edge_agent.{room}")
    assert len(module.__all__) == len(set(module.__all__))
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert module.__doc__
