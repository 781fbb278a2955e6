"""What a person needs to understand a device from afar, in one bounded zip archive.

Every member is made by a function of its own; one that fails says so in its place and costs no
other.  Never inside: keys, tokens, inputs, samples, predictions, corrections.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import threading
import time
import traceback
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from edge_agent.wire.commands import MAX_ATTACHMENT_BYTES

MAX_MEMBER_BYTES: Final = 512 * 1024
"""Longest member before it is packed; what is longer is cut, and says so."""
MAX_FILES: Final = 20_000
"""Files whose sizes are added up; a directory with more is reported as incomplete."""
_SECRET_SETTINGS: Final = frozenset({"http_token_file"})
"""They name a file, but somebody may have put the secret itself there."""

Member = Callable[[], bytes]


def pack(members: Mapping[str, Member]) -> bytes:
    """A zip archive of the members, each cut to `MAX_MEMBER_BYTES`; later ones are left out when
    the archive would exceed `MAX_ATTACHMENT_BYTES`."""
    packed = io.BytesIO()
    left_out = []
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            if packed.tell() > MAX_ATTACHMENT_BYTES - MAX_MEMBER_BYTES - 64 * 1024:
                left_out.append(name)
                continue
            archive.writestr(name, _bounded(member))
        if left_out:
            archive.writestr("left-out.txt", "\n".join(left_out))
    return packed.getvalue()


def _bounded(member: Member) -> bytes:
    try:
        data = member()
    except Exception as error:
        return f"not to be had: {type(error).__name__}: {error}\n".encode("utf-8", "replace")
    if len(data) > MAX_MEMBER_BYTES:
        return data[:MAX_MEMBER_BYTES] + b"\n[cut here]\n"
    return data


def as_json(value: object) -> bytes:
    """For reading by people."""
    return json.dumps(value, indent=2, default=str, sort_keys=True).encode()


def settings(values: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The settings without what is secret, or may be."""
    return {
        name: ("(set)" if value else "") if name in _SECRET_SETTINGS else value
        for name, value in values.items()
    }


def disk(directory: Path) -> dict[str, JsonValue]:
    """What the agent's directory takes, by entry, and what is free beside it; bytes."""
    usage = shutil.disk_usage(directory)
    entries: dict[str, JsonValue] = {}
    files = 0
    for entry in sorted(directory.iterdir()):
        size = 0
        for path in [entry, *entry.rglob("*")] if entry.is_dir() else [entry]:
            files += 1
            if files > MAX_FILES:
                break
            try:
                status = path.lstat()
            except OSError:
                continue  # removed meanwhile
            size += status.st_blocks * 512
        entries[entry.name] = size
    return {
        "total": usage.total,
        "free": usage.free,
        "entries": entries,
        "complete": files <= MAX_FILES,
    }


def threads() -> bytes:
    """Where every thread is: function names and lines, no values."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        parts.append(f"{names.get(ident, '?')}\n")
        parts.extend(
            f"  {entry.filename}:{entry.lineno} {entry.name}\n"
            for entry in traceback.StackSummary.extract(
                traceback.walk_stack(frame), lookup_lines=False
            )
        )
    return "".join(parts).encode()


def process() -> dict[str, JsonValue]:
    """The agent's process, and the machine around it."""
    times = os.times()
    facts: dict[str, JsonValue] = {
        "pid": os.getpid(),
        "python": sys.version,
        "cpu_s": round(times.user + times.system, 2),
        "clock": time.time(),
        "load": list(os.getloadavg()),
    }
    for name in ("VmRSS", "VmHWM", "Threads", "FDSize"):
        facts[name] = _status_field(name)
    return facts


def _status_field(name: str) -> str:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""
