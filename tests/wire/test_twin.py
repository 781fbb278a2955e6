"""The desired twin: what a device takes from anybody who can write to its topic."""

from __future__ import annotations

import pytest

from edge_agent.wire.errors import WireError
from edge_agent.wire.messages import MAX_NUMBER, Desired, DesiredModel


@pytest.mark.parametrize("field", ["version", "counter", "generation"])
@pytest.mark.parametrize("number", [-1, MAX_NUMBER + 1, 2**70])
def test_numbers_that_no_database_takes_are_no_twin(field: str, number: int) -> None:
    sound = DesiredModel(target="models/a/b/1.bundle", version=1, counter=1, generation=MAX_NUMBER)
    twin = Desired(version=1, models={"a": sound})
    assert Desired.decode(twin.encode()) == twin
    absurd = twin.model_copy(update={"models": {"a": sound.model_copy(update={field: number})}})
    with pytest.raises(WireError, match=field):
        Desired.decode(absurd.encode())
