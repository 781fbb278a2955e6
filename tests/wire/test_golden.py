"""The messages as they were first sent.  The files in `golden/` are never edited, only added to:
what an old device says must be understood for ever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_agent.wire.base import WireModel, pack_frame, unpack_frame
from edge_agent.wire.commands import Command, CommandReport
from edge_agent.wire.lab import LabInfo, MeasureHeader, MeasureOrder, MeasureResult
from edge_agent.wire.messages import (
    Ack,
    ChunkReply,
    ChunkRequest,
    ClaimFile,
    Correction,
    Desired,
    DeviceEvent,
    DeviceState,
    EnrolReply,
    EnrolRequest,
    FetchReply,
    FetchRequest,
    MetricsReport,
    RenewReply,
    RenewRequest,
    UpdateReport,
    UplinkHeader,
)
from edge_agent.wire.samples import SampleHeader

GOLDEN = Path(__file__).parent / "golden"

MESSAGES: dict[str, type[WireModel]] = {
    "ack": Ack,
    "chunk_request": ChunkRequest,
    "claim": ClaimFile,
    "command": Command,
    "correction": Correction,
    "desired": Desired,
    "desired_trial": Desired,
    "enrol_reply": EnrolReply,
    "enrol_request": EnrolRequest,
    "enrol_request_hardware": EnrolRequest,
    "event": DeviceEvent,
    "fetch_request": FetchRequest,
    "lab_info": LabInfo,
    "measure_order": MeasureOrder,
    "measure_result": MeasureResult,
    "metrics": MetricsReport,
    "metrics_shadow": MetricsReport,
    "renew_reply": RenewReply,
    "renew_request": RenewRequest,
    "report": UpdateReport,
    "state_birth": DeviceState,
    "state_birth_challenger": DeviceState,
    "state_birth_lab": DeviceState,
    "state_will": DeviceState,
}

FRAMES: dict[str, tuple[type[WireModel], bytes]] = {
    "chunk_reply": (ChunkReply, b"chunk"),
    "command_part": (CommandReport, b"z"),
    "command_report": (CommandReport, b""),
    "fetch_reply": (FetchReply, b"metadata"),
    "measure": (MeasureHeader, b"result"),
    "sample": (SampleHeader, b"zstd"),
    "uplink": (UplinkHeader, b"message"),
}


def contains(now: object, then: object) -> bool:
    """Whether all that was said then is said now; fields may have been added since."""
    if isinstance(then, dict):
        return isinstance(now, dict) and all(
            key in now and contains(now[key], value) for key, value in then.items()
        )
    return now == then


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_an_old_message_is_understood_and_passed_on_whole(name):
    data = (GOLDEN / f"{name}.json").read_bytes()
    message = MESSAGES[name].decode(data)
    assert contains(json.loads(message.encode()), json.loads(data))


@pytest.mark.parametrize("name", sorted(FRAMES))
def test_an_old_frame_is_understood(name):
    kind, payload = FRAMES[name]
    header, body = unpack_frame((GOLDEN / f"{name}.frame").read_bytes(), kind)
    assert bytes(body) == payload
    assert unpack_frame(pack_frame(header, body), kind)[0] == header


def test_every_golden_file_is_tested():
    names = {path.stem for path in GOLDEN.iterdir()}
    assert names == set(MESSAGES) | set(FRAMES)
