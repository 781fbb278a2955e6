"""Labels as a person writes them: "site=busan, line=3".  Pure."""

from __future__ import annotations


class BadLabels(ValueError):
    """A part is not KEY=VALUE."""


def parse_labels(text: str) -> dict[str, str]:
    """Read labels; an empty text has none.

    Raises:
        BadLabels: the first part that is not KEY=VALUE, named.
    """
    labels: dict[str, str] = {}
    for part in text.replace(";", ",").split(","):
        pair = part.strip()
        if not pair:
            continue
        key, separator, value = (piece.strip() for piece in pair.partition("="))
        if not (key and separator and value):
            raise BadLabels(f"{pair!r} is not a label; write KEY=VALUE, several with commas")
        labels[key] = value
    return labels
