"""What a gate says, and when many gates together say yes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

Verdict = Literal["pass", "fail", "insufficient"]
"""`insufficient` is no verdict on the model: it asks for more labels."""


@dataclass(frozen=True, slots=True)
class GateResult:
    """One gate's verdict, why in one line, and the figures that it was made of."""

    gate: str
    verdict: Verdict
    reason: str
    evidence: Mapping[str, JsonValue] = field(default_factory=dict)


def overall(results: Sequence[GateResult]) -> Verdict:
    """ "fail" if any gate fails, else "insufficient" if any is or none was asked, else "pass"."""
    verdicts = {result.verdict for result in results}
    if "fail" in verdicts:
        return "fail"
    return "pass" if verdicts == {"pass"} else "insufficient"
