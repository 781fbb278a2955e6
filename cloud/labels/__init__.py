"""Labels: what people (or machines) say about samples of the field.

Owns the append-only `labels` table.  A label is never changed: a new one is added, and `newest`
says which one holds.  A person's label ("human", "correction") always beats an automatic one;
among equals the newest wins.
"""

from __future__ import annotations

from cloud.labels.store import HUMAN_SOURCES, Source, UnknownSource, add, newest, of_samples

__all__ = ["HUMAN_SOURCES", "Source", "UnknownSource", "add", "newest", "of_samples"]
