"""The client's calls against the routes that the API really has."""

from __future__ import annotations

import re
from collections.abc import Iterator

from cloud.api import (
    command_routes,
    device_routes,
    enrolment_routes,
    export_routes,
    gateway_routes,
    group_routes,
    lab_routes,
    learning_routes,
    model_routes,
    operation_routes,
    registry_routes,
    rollout_routes,
    trial_routes,
)
from edge_agent.wire.messages import EnrolRequest, Inventory
from fleet.client import calls, command_calls, registry_schemas, schemas
from fleet.client.calls import Call
from fleet.client.command_schemas import CommandIn
from fleet.client.gateway_schemas import BelowIn
from fleet.client.trial_schemas import PromoteIn

MODULES = (
    device_routes, enrolment_routes, model_routes, learning_routes, operation_routes,
        rollout_routes, export_routes, lab_routes, gateway_routes, command_routes,
        group_routes, registry_routes, trial_routes,
)  # fmt: skip


def _routes() -> Iterator[tuple[str, str]]:
    for module in MODULES:
        for route in module.router.routes:
            for method in route.methods:
                yield method, route.path


def _calls() -> list[Call]:
    inventory = Inventory(
        machine="x", system="x", cpu_flags=(), cores=1, memory_mib=1, disk_free_mib=1, python="3",
        runtimes={},
    )  # fmt: skip
    enrol = EnrolRequest(claim_id="c1", secret="s", csr_pem="", inventory=inventory)
    return [
        calls.overview(),
        calls.devices(offset=0, limit=1, search="", labels=(), profile="", online=None),
        calls.device("d"),
        calls.assign_together("d", schemas.GroupIn(versions={"a": 1, "b": 2})),
        calls.label_devices(registry_schemas.LabelsIn(query="online", set={"a": "b"})),
        calls.import_devices(b"", "csv", dry_run=True),
        calls.device_changes("d", limit=1),
        calls.groups(),
        calls.group("g"),
        calls.create_group(registry_schemas.DeviceGroupIn(name="g")),
        calls.change_group("g", registry_schemas.DeviceGroupChange()),
        calls.delete_group("g"),
        calls.change_members("g", registry_schemas.MembersIn()),
        calls.create_claims(schemas.ClaimIn(profile="p")),
        calls.claims(),
        calls.revoke_claim("c"),
        calls.revoke_claims("b"),
        calls.revoke_device("d", ""),
        calls.enrol(enrol),
        calls.register_below("g", BelowIn(devices=["d"], profile="p")),
        calls.models(model="m", offset=0, limit=1),
        calls.model("m", 1),
        calls.approve("m", 1, ""),
        calls.reject("m", 1, ""),
        calls.publish("m", 1, schemas.PublishIn()),
        calls.bundle(1),
        calls.export(schemas.ExportIn(devices=["d"])),
        calls.export_blob("t", "s", offset=0),
        calls.rollouts(model="m", state="s", offset=0, limit=1),
        calls.plan_rollout(schemas.RolloutIn(model="m", version=1)),
        calls.rollout_assignments("r", wave=0, phase="p", failed=True, offset=0, limit=1),
        calls.explain_rollout("r"),
        calls.rollout("r"),
        calls.trial("r"),
        calls.share_trial("r", 0.5),
        calls.promote_trial("r", PromoteIn()),
        calls.start_rollout(schemas.RolloutIn(model="m", version=1)),
        calls.steer_rollout("r", "pause", "why"),
        calls.drift("m"),
        calls.check_drift("m"),
        calls.collection("m"),
        calls.held_out_inputs("d", limit=1),
        calls.jobs(),
        calls.job("j"),
        calls.start_job(schemas.JobIn(kind="build", project="p")),
        calls.cancel_job("j"),
        calls.job_report("j"),
        calls.job_report_json("j"),
        calls.lab_devices("device:d"),
        calls.lab_blob("a" * 64),
        calls.upload_lab_blob("bundle", b""),
        calls.order_measurement(
            schemas.LabOrderIn(device="d", candidate="a" * 64, samples="b" * 64)
        ),
        calls.lab_order("o"),
        calls.cancel_lab_order("o"),
        calls.predictor_points("p"),
        calls.add_predictor_point(
            schemas.PredictorPointIn(
                order="o", runtime="r", precision="p", variant="v", scaled_ms=1.0
            )
        ),
        command_calls.ask(CommandIn(name="logs", devices=["d"])),
        command_calls.commands(device="d", state="", batch="", name="", offset=0, limit=1),
        command_calls.command("c"),
        command_calls.attachment("c"),
        command_calls.cancel("c"),
        command_calls.cancel_batch("b"),
        calls.projects(),
        calls.project("p"),
        calls.apply_project("p", b""),
        calls.audit(offset=0, limit=1),
        calls.create_token(schemas.TokenIn(name="n", role="viewer")),
    ]


def _answers(method: str, path: str, call: Call) -> bool:
    pattern = re.sub(r"\{[^}]+\}", "[^/]+", path)
    return method == call.method and re.fullmatch(pattern, call.path) is not None


def test_every_call_has_a_route_and_every_route_a_call():
    routes = list(_routes())
    unheard = [c.path for c in _calls() if not any(_answers(*route, c) for route in routes)]
    unasked = [route for route in routes if not any(_answers(*route, c) for c in _calls())]
    assert (unheard, unasked) == ([], [])
