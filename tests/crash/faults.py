"""A disk that refuses: full, or broken for once, at one operation or from there on."""

from __future__ import annotations

from tests.crash import tracer
from tests.crash.scenarios import Lab, Scenario
from tests.crash.verdict import apart, disturbed, recovered


def attempt(lab: Lab, scenario: Scenario, at: int, error: int, *, once: bool) -> str:
    """Run `scenario` with operation `at` refused, and judge; empty when all is well."""
    root = lab.fresh(scenario.base)

    def decide(operation: tracer.Operation) -> int:
        if once:
            return error if operation.number == at else 0
        return error if operation.number >= at and operation.takes_room else 0

    problem = lab.directory / "problem"

    def body() -> int:
        found = disturbed(lab, scenario)
        problem.write_text(found)
        return 0

    ended = tracer.run(body, root, decide)
    if not problem.exists():
        return f"the agent died of it, status {ended.status}"
    if found := problem.read_text():
        return found
    return apart(lambda: recovered(lab, scenario))
