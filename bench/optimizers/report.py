"""What a run found, as tables for people and as one JSON object for programs."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from typing import Final

from pydantic import JsonValue
from rich.console import Console
from rich.table import Table

from bench.optimizers.run import Figures
from edge_agent.measure import Comparison
from edge_agent.runtime import available, cpu_flags

TO_REACH: Final[dict[str, tuple[str, float]]] = {
    "resnet_speedup_vs_torch": ("≥", 10),
    "resnet_speedup_vs_ort_fp32": ("≥", 8),
    "lowest_speedup": ("≥", 1),
    "accuracy_drop_points": ("≤", 1),
    "share_of_exhaustive_best": ("≥", 0.95),
    "measured_fraction": ("≤", 0.15),
    "lowest_over_peers": ("≥", 1),
}
"""What the headline is held to."""


def headline(found: Sequence[Figures]) -> dict[str, float]:
    """Figures in total: geometric means of speedups, the worst of all else, minutes in sum."""
    ratios = [each.vs_torch.speedup for each in found], [each.vs_ort.speedup for each in found]
    shares = [each.share_of_best for each in found if each.share_of_best is not None]
    peers = [
        peer.ours_over_theirs.speedup
        for each in found
        for peer in each.peers
        if peer.ours_over_theirs is not None
    ]
    total = {
        "speedup_vs_torch": _geometric_mean(ratios[0]),
        "speedup_vs_ort_fp32": _geometric_mean(ratios[1]),
        "lowest_speedup": min(min(ratios[0]), min(ratios[1])),
        "accuracy_drop_points": max(each.accuracy_drop_points for each in found),
        "measured_fraction": sum(each.measured for each in found)
        / max(1, sum(each.points for each in found)),
        "minutes": sum(each.minutes for each in found),
    }
    if shares:
        total["share_of_exhaustive_best"] = min(shares)
    if peers:
        total["lowest_over_peers"] = min(peers)
    for each in found:
        if each.name == "resnet":
            total["resnet_speedup_vs_torch"] = each.vs_torch.speedup
            total["resnet_speedup_vs_ort_fp32"] = each.vs_ort.speedup
            total["resnet_speedup_vs_ort_fp32_one_thread"] = each.vs_ort_one_thread.speedup
    return total


def as_json(found: Sequence[Figures], load: float) -> dict[str, JsonValue]:
    """The headline first, then every network."""
    models: dict[str, JsonValue] = {each.name: _model(each) for each in found}
    return {
        **{key: round(value, 4) for key, value in headline(found).items()},
        "models": models,
        "machine": {
            "cores": os.cpu_count(), "load_per_core": round(load, 2),
            "python": platform.python_version(), "cpu_flags": " ".join(cpu_flags()),
            **available(),
        },
    }  # fmt: skip


def print_tables(found: Sequence[Figures]) -> None:
    console = Console(width=max(120, Console().width))
    table = Table(title="the chosen variant beside what people start from", title_justify="left")
    for name, justify in (
        ("network", "left"), ("chosen", "left"), ("× torch", "right"), ("× ORT fp32", "right"),
        ("… 1 thread", "right"),
        ("accuracy lost, points", "right"), ("of exhaustive best", "right"),
        ("measured", "right"), ("minutes", "right"),
    ):  # fmt: skip
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for each in found:
        share = each.share_of_best
        table.add_row(
            f"{each.name}\n[dim]{each.about}", f"{each.winner}\n[dim]{each.precision}",
            _ratio(each.vs_torch), _ratio(each.vs_ort), _ratio(each.vs_ort_one_thread),
            f"{each.accuracy_drop_points:.2f}\n[dim]of {each.reference_accuracy:.1%}",
            "–" if share is None else f"{share:.0%}\n[dim]{each.best}",
            f"{each.measured_fraction:.0%}\n[dim]{each.measured} of {each.points}",
            f"{each.minutes:.1f}\n[dim]{each.exhaustive_minutes:.1f} exhaustive",
        )  # fmt: skip
    console.print(table)
    if any(each.peers for each in found):
        console.print(_peers(found))
    figures = Table(title="in total", title_justify="left")
    for name in ("figure", "found", "to reach"):
        figures.add_column(name, justify="left" if name == "figure" else "right")
    for key, value in headline(found).items():
        relation, bound = TO_REACH.get(key, ("", math.nan))
        held = value >= bound if relation == "≥" else value <= bound
        mark = "" if not relation else " [green]✓" if held else " [red]✗"
        figures.add_row(key, f"{value:.3g}", f"{relation} {bound:g}{mark}" if relation else "")
    console.print(figures)


def _peers(found: Sequence[Figures]) -> Table:
    table = Table(title="beside other optimisers, at the same bound of accuracy",
                  title_justify="left")  # fmt: skip
    for name in ("network", "optimiser", "its best", "accuracy of what it made", "ours over it"):
        table.add_column(name)
    for each in found:
        for peer in each.peers:
            made = ", ".join(f"{name} {value:.1%}" for name, value in peer.made.items())
            said = peer.failed if peer.ours_over_theirs is None else _ratio(peer.ours_over_theirs)
            table.add_row(each.name, peer.name, peer.chosen or "–", made, said)
    return table


def _ratio(found: Comparison) -> str:
    note = "\n[dim]disturbed" if found.disturbed else ""
    return f"{found.speedup:.2f}\n[dim]{found.low:.2f}…{found.high:.2f}{note}"


def _model(each: Figures) -> dict[str, JsonValue]:
    return {
        "winner": each.winner,
        "precision": each.precision,
        "speedup_vs_torch": round(each.vs_torch.speedup, 3),
        "speedup_vs_ort_fp32": round(each.vs_ort.speedup, 3),
        "speedup_vs_ort_fp32_one_thread": round(each.vs_ort_one_thread.speedup, 3),
        "accuracy": round(each.accuracy, 4),
        "accuracy_drop_points": round(each.accuracy_drop_points, 3),
        "share_of_exhaustive_best": each.share_of_best,
        "exhaustive_best": each.best,
        "measured_fraction": round(each.measured_fraction, 4),
        "points": each.points,
        "minutes": round(each.minutes, 2),
        "exhaustive_minutes": round(each.exhaustive_minutes, 2),
        "vs_torch": each.vs_torch.model_dump(mode="json"),
        "vs_ort_fp32": each.vs_ort.model_dump(mode="json"),
        "vs_ort_fp32_one_thread": each.vs_ort_one_thread.model_dump(mode="json"),
        "peers": {
            peer.name: {
                "made": dict(peer.made),
                "chosen": peer.chosen,
                "ours_over_theirs": None
                if peer.ours_over_theirs is None
                else peer.ours_over_theirs.model_dump(mode="json"),
                "failed": peer.failed,
            }
            for peer in each.peers
        },
    }


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))
