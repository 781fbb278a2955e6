"""The words of the console: English is the key, Korean its entry.  A missing one stays English."""

from __future__ import annotations

from typing import Final

KOREAN: Final[dict[str, str]] = {}


def translate(lang: str, english: str, **values: object) -> str:
    """`english` in `lang`, with `{name}` places filled from `values`."""
    words = KOREAN.get(english, english) if lang == "ko" else english
    return words.format(**values) if values else words
