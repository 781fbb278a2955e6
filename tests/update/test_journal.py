"""Outcomes of assignments: kept as long as they matter, and no longer."""

from __future__ import annotations

from pathlib import Path

from edge_agent.update.journal import Journal
from edge_agent.wire.messages import UpdateReport


def failed(generation: int) -> UpdateReport:
    return UpdateReport(
        model="digits",
        target=f"models/digits/this-machine/{generation}.bundle",
        version=1,
        counter=generation,
        generation=generation,
        phase="failed",
        reason="selftest_failed",
    )


def settle(journal: Journal, report: UpdateReport) -> None:
    (kept,) = journal.settle([report])
    journal.mark_reported(kept)


def test_the_newest_outcome_is_kept_when_generations_begin_anew(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    for generation in (1000, 1, 2):
        settle(journal, failed(generation))
    for generation in (1, 2):
        report = failed(generation)
        assert journal.outcome("digits", generation, report.target) == report
    journal.close()


def test_outcomes_of_a_model_are_bounded(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.settle([failed(1)])  # whose report was not made yet
    for generation in range(2, 70):
        settle(journal, failed(generation))
    kept = [
        generation
        for generation in range(70)
        if journal.outcome("digits", generation, failed(generation).target)
    ]
    assert kept[0] == 1 and kept[-1] == 69 and 50 <= len(kept) <= 52
    journal.close()
