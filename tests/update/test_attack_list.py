"""The whole list of attacks and faults that a trusted device survives has tests, by number."""

from __future__ import annotations

import re
from pathlib import Path

from tests.update.test_attacks_metadata import ATTACKS

TESTS = Path(__file__).resolve().parents[1]
NAMED = re.compile(r"^ *(?:async )?def test_(?:attack|fault)_((?:\d+_)+)", re.MULTILINE)


def test_every_attack_and_fault_of_the_list_has_a_test_with_its_number() -> None:
    found = {int(str(entry.id)[:2]) for entry in ATTACKS}
    for path in TESTS.rglob("test_*.py"):
        for numbers in NAMED.findall(path.read_text()):
            found |= {int(number) for number in numbers.split("_") if number}
    assert found == set(range(1, 33))
