"""What the API says about groups of devices, their labels and their history."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, StringConstraints

from edge_agent.wire.ids import Slug
from fleet.client.schemas import ApiModel, ApiRequest, Json
from fleet.devices.query import MAX_QUERY_CHARS

MAX_MEMBERS: Final = 10_000
LABEL_KEY: Final = r'^[^"\\=\x00-\x1f]{1,64}$'
LabelKey = Annotated[str, StringConstraints(pattern=LABEL_KEY)]
LabelValue = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f]{0,200}$")]
QueryText = Annotated[str, StringConstraints(max_length=MAX_QUERY_CHARS)]
Members = Annotated[list[Slug], Field(max_length=MAX_MEMBERS)]


class DeviceGroupIn(ApiRequest):
    """A group by `query`, or, where that is empty, with `devices` as its members."""

    name: Slug
    query: QueryText = ""
    description: str = Field(default="", max_length=200)
    devices: Members = Field(default_factory=list)


class DeviceGroupChange(ApiRequest):
    """What becomes different about a group; what is None stays."""

    query: QueryText | None = None
    description: str | None = Field(default=None, max_length=200)


class DeviceGroupOut(ApiModel):
    """A group; `devices` is how many are in it now, `query` is empty where members are named."""

    name: str
    query: str
    description: str
    devices: int
    created_by: str
    created_at: float
    updated_at: float


class MembersIn(ApiRequest):
    """Who comes and who goes; who does both, stays."""

    add: Members = Field(default_factory=list)
    remove: Members = Field(default_factory=list)


class LabelsIn(ApiRequest):
    """Labels for all devices that a query means.

    Attributes:
        set: key → value.
        remove: keys; a device that has none of them stays as it is.
        dry_run: count only.
    """

    query: str = Field(min_length=1, max_length=MAX_QUERY_CHARS)
    set: dict[LabelKey, LabelValue] = Field(default_factory=dict, max_length=32)
    remove: list[LabelKey] = Field(default_factory=list, max_length=32)
    dry_run: bool = False


class LabelsOut(ApiModel):
    """How many devices were meant, and how many of them changed (or would have)."""

    matched: int
    changed: int


class ImportProblem(ApiModel):
    line: int
    problem: str


class ImportOut(ApiModel):
    """What became of an import: `rows` read, `changed` devices.

    With a single problem nothing is written; `problems` lists the first of them by line, `wrong`
    counts all.
    """

    rows: int
    changed: int
    wrong: int
    problems: list[ImportProblem]


class HistoryOut(ApiModel):
    """One change: online, offline, reported, desired, labels or inventory; `detail` is what is
    different now."""

    kind: str
    at: float
    detail: Json
