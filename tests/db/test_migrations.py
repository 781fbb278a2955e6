"""The chain of migrations has one end, and its files are numbered as it runs."""

from __future__ import annotations

import re
from pathlib import Path

import cloud.db.engine

VERSIONS = Path(cloud.db.engine.__file__).parent / "migrations" / "versions"


def test_migrations_follow_each_other_by_number() -> None:
    chain = []
    for path in sorted(VERSIONS.glob("[0-9]*.py")):
        text = path.read_text()
        revision = re.search(r'^revision = "(\d+)"', text, re.MULTILINE)
        before = re.search(r'^down_revision = (?:"(\d+)"|None)', text, re.MULTILINE)
        assert revision is not None, path
        assert before is not None, path
        chain.append((path.name[:4], revision[1], before[1]))
    numbers = [f"{number:04}" for number in range(1, len(chain) + 1)]
    assert chain == list(zip(numbers, numbers, [None, *numbers[:-1]], strict=True))
