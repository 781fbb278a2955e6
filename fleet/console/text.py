"""Words in the reader's language: English is the key, `korean.WORDS` has the other.

A phrase without an entry stays English, so a missing one is seen and never breaks a page.
"""

from __future__ import annotations

from fleet.console.korean import WORDS


def translate(lang: str, english: str, **values: object) -> str:
    """`english` in `lang`, with `{name}` places filled from `values`."""
    words = WORDS.get(english, english) if lang == "ko" else english
    return words.format(**values) if values else words
