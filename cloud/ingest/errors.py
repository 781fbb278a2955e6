"""Errors of ingest.

BadMessage    (device) a message that will never be right; dropped
"""

from __future__ import annotations


class BadMessage(ValueError):
    """The message cannot be applied, now or later.  Its text never holds the payload."""
