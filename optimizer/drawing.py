"""What the pictures of a report share: scales, axes and text, as SVG.  Pure.

Text stays text, colours are classes of the page: a picture follows light and dark with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 860
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 16, 46
_FEWEST_TICKS: Final = 3


@dataclass(frozen=True)
class Scale:
    """From values to places.

    Attributes:
        low, high: values at `start` and `end`.
        log: equal ratios are equally far apart.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def ticks(self) -> list[float]:
        """Round values within it."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [m * 10.0**d for d in decades for m in (1, 2, 5)]
            inside = [value for value in found if self.low <= value <= self.high]
            if len(inside) >= _FEWEST_TICKS:
                return inside
        return _round_steps(self.low, self.high)


def _round_steps(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough)
    first = math.ceil(low / step)
    return [round(n * step, 10) for n in range(first, math.floor(high / step) + 1)]


def frame(x: Scale, y: Scale | None, height: int, x_label: str, y_label: str = "") -> str:
    """Grid, ticks and labels; without `y` the height says nothing in numbers."""
    bottom = height - BOTTOM
    parts = []
    if y is not None:
        for value in y.ticks():
            at = y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" {_level(at)}/>')
            parts.append(text(LEFT - 9, at + 4, f"{value:g}", "tick end"))
    for value in x.ticks():
        at = x(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(text(at, bottom + 19, f"{value:g}", "tick mid"))
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" {_level(bottom)}/>')
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, height - 6, x_label, "label mid"))
    if y_label:
        middle = (TOP + bottom) / 2
        parts.append(
            f'<text class="label mid" transform="translate(15 {middle:.1f}) rotate(-90)">'
            f"{escape(y_label)}</text>"
        )
    return "".join(parts)


def picture(height: int, title: str, content: str) -> str:
    """An `<svg>` element that is as wide as its place."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{content}</svg>"
    )


def text(x: float, y: float, content: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(content)}</text>'


def upright(x: float, top: float, bottom: float, kind: str) -> str:
    """A vertical line."""
    return f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'


def _level(y: float) -> str:
    return f'y1="{y:.1f}" y2="{y:.1f}"'
