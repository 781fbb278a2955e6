"""What can be asked of the API: one function per route, and how its answer is read.

A `Call` is a value: it does no I/O.  `fleet.client.client` sends it, synchronously or not, so both
clients share every path, parameter and type.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from edge_agent.wire.messages import ClaimFile, EnrolReply, EnrolRequest
from fleet.client import (
    enrolment_schemas,
    gateway_schemas,
    registry_schemas,
    rollout_schemas,
    schemas,
    trial_schemas,
)
from fleet.client.errors import ApiError, SignInNeeded, UnexpectedAnswer
from fleet.client.evidence_schemas import EvidenceOut
from fleet.devices import sheet

T = TypeVar("T")
LabBlobKind = Literal["bundle", "samples"]
RolloutAction = Literal["approve", "pause", "resume", "cancel", "halt", "rollback"]

PAGE_ROWS: Final = 100
"""Rows of a page where the caller names none."""

MAX_PAGE_ROWS: Final = 1000
"""Most rows of a page that the API gives."""

MAX_MESSAGE_CHARS: Final = 300
"""Longest error text that is passed on; a proxy's HTML page is not a message."""


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """One request to the API, and how to read its answer.

    Attributes:
        read: turns the body of a successful answer into the result.
        timeout_s: longest wait for the answer, in seconds.
    """

    method: str
    path: str
    read: Callable[[bytes], T]
    params: tuple[tuple[str, str], ...] = ()
    body: BaseModel | None = None
    content: bytes | None = None
    timeout_s: float = 30.0

    def answer(self, response: httpx.Response) -> T:
        """Read the answer.

        Raises:
            SignInNeeded: the token is missing, wrong or revoked.
            UnexpectedAnswer: the body does not have the form that the API promises.
            ApiError: any other refusal, with the control plane's own line.
        """
        if response.status_code == 401:
            raise SignInNeeded(_line(response))
        if not response.is_success:
            raise ApiError(response.status_code, _line(response))
        try:
            return self.read(response.content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "body"
            raise UnexpectedAnswer(
                response.status_code,
                f"{self.method} {self.path}: unexpected answer at {place}: {first['msg']}; "
                "are client and control plane of the same version?",
            ) from error


def _line(response: httpx.Response) -> str:
    """The control plane's error text on one line."""
    text = ""
    try:
        body = json.loads(response.content)
    except ValueError:
        body = None
    if isinstance(body, dict):
        found = body.get("error") or body.get("detail")
        text = found if isinstance(found, str) else json.dumps(found) if found else ""
    text = " ".join(text.split())[:MAX_MESSAGE_CHARS]
    return text or f"the control plane answered {response.status_code} {response.reason_phrase}"


def _as(kind: type[T]) -> Callable[[bytes], T]:
    return TypeAdapter(kind).validate_json


def _nothing(_: bytes) -> None:
    return None


def _bytes(body: bytes) -> bytes:
    return body


def _text(body: bytes) -> str:
    return body.decode("utf-8", "replace")


def _path(*parts: str | int) -> str:
    return "/v1/" + "/".join(quote(str(part), safe="") for part in parts)


def _window(offset: int, limit: int) -> tuple[tuple[str, str], ...]:
    return (("offset", str(offset)), ("limit", str(limit)))


_OVERVIEW: Final = _as(schemas.Overview)
_DEVICE_PAGE: Final = _as(schemas.DevicePage)
_DEVICE: Final = _as(schemas.DeviceDetail)
_LABELS: Final = _as(registry_schemas.LabelsOut)
_IMPORT: Final = _as(registry_schemas.ImportOut)
_CHANGES: Final = _as(list[registry_schemas.HistoryOut])
_GROUPS: Final = _as(list[registry_schemas.DeviceGroupOut])
_GROUP: Final = _as(registry_schemas.DeviceGroupOut)
_ASSIGNED: Final = _as(list[schemas.AssignedOut])
_CLAIM_FILES: Final = _as(list[ClaimFile])
_BELOW: Final = _as(gateway_schemas.BelowOut)
_CLAIMS: Final = _as(list[schemas.ClaimOut])
_CLAIMS_REVOKED: Final = _as(enrolment_schemas.ClaimsRevoked)
_ENROLLED: Final = _as(EnrolReply)
_MODEL: Final = _as(schemas.ModelDetail)
_EXPORT: Final = _as(schemas.ExportOut)
_MODEL_PAGE: Final = _as(rollout_schemas.ModelPage)
_TRIAL: Final = _as(trial_schemas.TrialOut)
_ROLLOUT_PAGE: Final = _as(rollout_schemas.RolloutPage)
_ROLLOUT_PLAN: Final = _as(rollout_schemas.RolloutPlanOut)
_ASSIGNMENT_PAGE: Final = _as(rollout_schemas.AssignmentPage)
_EXPLAIN: Final = _as(rollout_schemas.ExplainOut)
_ROLLOUT: Final = _as(schemas.RolloutDetail)
_EVIDENCE: Final = _as(EvidenceOut)
_DRIFT: Final = _as(list[schemas.DriftOut])
_COLLECTION: Final = _as(schemas.CollectionOut)
_JOBS: Final = _as(list[schemas.JobOut])
_JOB: Final = _as(schemas.JobOut)
_PROJECTS: Final = _as(list[schemas.ProjectOut])
_PROJECT: Final = _as(schemas.ProjectOut)
_LAB_DEVICES: Final = _as(list[schemas.LabDeviceOut])
_LAB_BLOB: Final = _as(schemas.LabBlobOut)
_LAB_ORDER: Final = _as(schemas.LabOrderOut)
_POINTS: Final = _as(list[schemas.PredictorPointOut])
_POINT: Final = _as(schemas.PredictorPointOut)
_AUDIT: Final = _as(list[schemas.AuditOut])
_TOKEN: Final = _as(schemas.TokenOut)


# ── fleet ────────────────────────────────────────────────────────────────────────────────────────


def overview() -> Call[schemas.Overview]:
    return Call(method="GET", path=_path("overview"), read=_OVERVIEW)


def devices(
    *,
    offset: int,
    limit: int,
    search: str,
    labels: Sequence[str],
    profile: str,
    online: bool | None,
    query: str = "",
) -> Call[schemas.DevicePage]:
    params = list(_window(offset, limit))
    if search:
        params.append(("search", search))
    params.extend(("label", label) for label in labels)
    if profile:
        params.append(("profile", profile))
    if online is not None:
        params.append(("online", "true" if online else "false"))
    if query:
        params.append(("query", query))
    return Call(method="GET", path=_path("devices"), params=tuple(params), read=_DEVICE_PAGE)


def device(device_id: str) -> Call[schemas.DeviceDetail]:
    return Call(method="GET", path=_path("devices", device_id), read=_DEVICE)


def assign_together(device_id: str, request: schemas.GroupIn) -> Call[list[schemas.AssignedOut]]:
    path = _path("devices", device_id, "assignments")
    return Call(method="POST", path=path, body=request, read=_ASSIGNED)


def label_devices(request: registry_schemas.LabelsIn) -> Call[registry_schemas.LabelsOut]:
    path = _path("devices", "labels")
    return Call(method="POST", path=path, body=request, read=_LABELS, timeout_s=120.0)


def import_devices(
    data: bytes, form: sheet.Form, *, dry_run: bool
) -> Call[registry_schemas.ImportOut]:
    params = (("form", form), ("dry_run", "true" if dry_run else "false"))
    return Call(
        method="PUT",
        path=_path("devices", "import"),
        params=params,
        content=data,
        read=_IMPORT,
        timeout_s=300.0,
    )


def device_changes(device_id: str, *, limit: int) -> Call[list[registry_schemas.HistoryOut]]:
    params = (("limit", str(limit)),)
    path = _path("devices", device_id, "changes")
    return Call(method="GET", path=path, params=params, read=_CHANGES)


def groups() -> Call[list[registry_schemas.DeviceGroupOut]]:
    return Call(method="GET", path=_path("groups"), read=_GROUPS)


def group(name: str) -> Call[registry_schemas.DeviceGroupOut]:
    return Call(method="GET", path=_path("groups", name), read=_GROUP)


def create_group(
    request: registry_schemas.DeviceGroupIn,
) -> Call[registry_schemas.DeviceGroupOut]:
    return Call(method="POST", path=_path("groups"), body=request, read=_GROUP)


def change_group(
    name: str, request: registry_schemas.DeviceGroupChange
) -> Call[registry_schemas.DeviceGroupOut]:
    return Call(method="PATCH", path=_path("groups", name), body=request, read=_GROUP)


def delete_group(name: str) -> Call[None]:
    return Call(method="DELETE", path=_path("groups", name), read=_nothing)


def change_members(
    name: str, request: registry_schemas.MembersIn
) -> Call[registry_schemas.DeviceGroupOut]:
    path = _path("groups", name, "members")
    return Call(method="POST", path=path, body=request, read=_GROUP)


def create_claims(request: schemas.ClaimIn) -> Call[list[ClaimFile]]:
    return Call(method="POST", path=_path("claims"), body=request, read=_CLAIM_FILES)


def claims(batch: str = "") -> Call[list[schemas.ClaimOut]]:
    params = (("batch", batch),) if batch else ()
    return Call(method="GET", path=_path("claims"), params=params, read=_CLAIMS)


def revoke_claim(claim_id: str) -> Call[None]:
    return Call(method="DELETE", path=_path("claims", claim_id), read=_nothing)


def register_below(
    gateway: str, request: gateway_schemas.BelowIn
) -> Call[gateway_schemas.BelowOut]:
    return Call(
        method="POST",
        path=_path("gateways", gateway, "devices"),
        body=request,
        read=_BELOW,
    )


def revoke_claims(batch: str) -> Call[enrolment_schemas.ClaimsRevoked]:
    params = (("batch", batch),)
    return Call(method="DELETE", path=_path("claims"), params=params, read=_CLAIMS_REVOKED)


def revoke_device(device_id: str, reason: str) -> Call[None]:
    body = enrolment_schemas.RevocationIn(reason=reason)
    path = _path("devices", device_id, "revoke")
    return Call(method="POST", path=path, body=body, read=_nothing)


def enrol(request: EnrolRequest) -> Call[EnrolReply]:
    return Call(method="POST", path=_path("enrol"), body=request, read=_ENROLLED)


# ── models ───────────────────────────────────────────────────────────────────────────────────────


def models(*, model: str, offset: int, limit: int) -> Call[rollout_schemas.ModelPage]:
    params = list(_window(offset, limit))
    if model:
        params.append(("model", model))
    return Call(method="GET", path=_path("models"), params=tuple(params), read=_MODEL_PAGE)


def model(name: str, version: int) -> Call[schemas.ModelDetail]:
    return Call(method="GET", path=_path("models", name, version), read=_MODEL)


def approve(name: str, version: int, reason: str) -> Call[schemas.ModelDetail]:
    body = schemas.ApprovalIn(reason=reason)
    path = _path("models", name, version, "approve")
    return Call(method="POST", path=path, body=body, read=_MODEL)


def reject(name: str, version: int, reason: str) -> Call[schemas.ModelDetail]:
    body = schemas.ApprovalIn(reason=reason)
    path = _path("models", name, version, "reject")
    return Call(method="POST", path=path, body=body, read=_MODEL)


def publish(name: str, version: int, request: schemas.PublishIn) -> Call[schemas.ModelDetail]:
    path = _path("models", name, version, "publish")
    # some minutes for each profile of a large model: compression, then a minute for deltas
    return Call(method="POST", path=path, body=request, read=_MODEL, timeout_s=3600.0)


def bundle(variant_id: int) -> Call[bytes]:
    path = _path("variants", variant_id, "bundle")
    return Call(method="GET", path=path, read=_bytes, timeout_s=600.0)


# ── export ───────────────────────────────────────────────────────────────────────────────────────


def export(request: schemas.ExportIn) -> Call[schemas.ExportOut]:
    return Call(method="POST", path=_path("export"), body=request, read=_EXPORT, timeout_s=120.0)


def export_blob(target: str, sha256: str, *, offset: int) -> Call[bytes]:
    params = (("target", target), ("sha256", sha256), ("offset", str(offset)))
    return Call(
        method="GET", path=_path("export", "blob"), params=params, read=_bytes, timeout_s=120.0
    )


# ── rollouts ─────────────────────────────────────────────────────────────────────────────────────


def rollouts(
    *, model: str, state: str, offset: int, limit: int
) -> Call[rollout_schemas.RolloutPage]:
    params = list(_window(offset, limit))
    params += [(name, value) for name, value in (("model", model), ("state", state)) if value]
    return Call(method="GET", path=_path("rollouts"), params=tuple(params), read=_ROLLOUT_PAGE)


def rollout(rollout_id: str) -> Call[schemas.RolloutDetail]:
    return Call(method="GET", path=_path("rollouts", rollout_id), read=_ROLLOUT)


def rollout_assignments(
    rollout_id: str,
    *,
    wave: int | None,
    phase: str,
    failed: bool,
    offset: int,
    limit: int,
) -> Call[rollout_schemas.AssignmentPage]:
    params = list(_window(offset, limit))
    if wave is not None:
        params.append(("wave", str(wave)))
    if phase:
        params.append(("phase", phase))
    if failed:
        params.append(("failed", "true"))
    path = _path("rollouts", rollout_id, "assignments")
    return Call(method="GET", path=path, params=tuple(params), read=_ASSIGNMENT_PAGE)


def plan_rollout(request: schemas.RolloutIn) -> Call[rollout_schemas.RolloutPlanOut]:
    return Call(method="POST", path=_path("rollouts", "plan"), body=request, read=_ROLLOUT_PLAN)


def explain_rollout(rollout_id: str) -> Call[rollout_schemas.ExplainOut]:
    return Call(method="GET", path=_path("rollouts", rollout_id, "explain"), read=_EXPLAIN)


def rollout_evidence(rollout_id: str) -> Call[EvidenceOut]:
    return Call(method="GET", path=_path("rollouts", rollout_id, "evidence"), read=_EVIDENCE)


def start_rollout(request: schemas.RolloutIn) -> Call[schemas.RolloutDetail]:
    return Call(method="POST", path=_path("rollouts"), body=request, read=_ROLLOUT)


def trial(rollout_id: str) -> Call[trial_schemas.TrialOut]:
    return Call(method="GET", path=_path("rollouts", rollout_id, "trial"), read=_TRIAL)


def share_trial(rollout_id: str, share: float) -> Call[trial_schemas.TrialOut]:
    """`share` of the requests, 0 to 1."""
    path = _path("rollouts", rollout_id, "trial", "share")
    return Call(method="PUT", path=path, body=trial_schemas.ShareIn(share=share), read=_TRIAL)


def promote_trial(rollout_id: str, request: trial_schemas.PromoteIn) -> Call[schemas.RolloutDetail]:
    path = _path("rollouts", rollout_id, "trial", "promote")
    return Call(method="POST", path=path, body=request, read=_ROLLOUT)


def steer_rollout(
    rollout_id: str, action: RolloutAction, reason: str
) -> Call[schemas.RolloutDetail]:
    path = _path("rollouts", rollout_id, action)
    body = rollout_schemas.SteerIn(reason=reason)
    return Call(method="POST", path=path, body=body, read=_ROLLOUT)


# ── learning ─────────────────────────────────────────────────────────────────────────────────────


def drift(model: str) -> Call[list[schemas.DriftOut]]:
    params = (("model", model),) if model else ()
    return Call(method="GET", path=_path("drift"), params=params, read=_DRIFT)


def check_drift(model: str) -> Call[list[schemas.DriftOut]]:
    params = (("model", model),)
    path = _path("drift", "check")
    return Call(method="POST", path=path, params=params, read=_DRIFT, timeout_s=120.0)


def collection(model: str) -> Call[schemas.CollectionOut]:
    params = (("model", model),) if model else ()
    return Call(method="GET", path=_path("collection"), params=params, read=_COLLECTION)


def held_out_inputs(dataset: str, *, limit: int) -> Call[bytes]:
    params = (("limit", str(limit)),)
    path = _path("datasets", dataset, "inputs")
    return Call(method="GET", path=path, params=params, read=_bytes, timeout_s=300.0)


def jobs() -> Call[list[schemas.JobOut]]:
    return Call(method="GET", path=_path("jobs"), read=_JOBS)


def job(job_id: str) -> Call[schemas.JobOut]:
    return Call(method="GET", path=_path("jobs", job_id), read=_JOB)


def start_job(request: schemas.JobIn) -> Call[schemas.JobOut]:
    return Call(method="POST", path=_path("jobs"), body=request, read=_JOB)


def cancel_job(job_id: str) -> Call[schemas.JobOut]:
    return Call(method="POST", path=_path("jobs", job_id, "cancel"), read=_JOB)


def job_report(job_id: str) -> Call[str]:
    return Call(method="GET", path=_path("jobs", job_id, "report"), read=_text)


def job_report_json(job_id: str) -> Call[str]:
    return Call(method="GET", path=_path("jobs", job_id, "report.json"), read=_text)


# ── measuring on devices ─────────────────────────────────────────────────────────────────────────


def lab_devices(on: str) -> Call[list[schemas.LabDeviceOut]]:
    path = _path("lab", "devices")
    return Call(method="GET", path=path, params=(("on", on),), read=_LAB_DEVICES)


def lab_blob(sha256: str) -> Call[schemas.LabBlobOut]:
    return Call(method="GET", path=_path("lab", "blobs", sha256), read=_LAB_BLOB)


def upload_lab_blob(kind: LabBlobKind, data: bytes) -> Call[schemas.LabBlobOut]:
    path = _path("lab", "blobs", kind)
    return Call(method="PUT", path=path, content=data, read=_LAB_BLOB, timeout_s=600.0)


def order_measurement(request: schemas.LabOrderIn) -> Call[schemas.LabOrderOut]:
    return Call(method="POST", path=_path("lab", "orders"), body=request, read=_LAB_ORDER)


def lab_order(order_id: str) -> Call[schemas.LabOrderOut]:
    return Call(method="GET", path=_path("lab", "orders", order_id), read=_LAB_ORDER)


def cancel_lab_order(order_id: str) -> Call[schemas.LabOrderOut]:
    path = _path("lab", "orders", order_id, "cancel")
    return Call(method="POST", path=path, read=_LAB_ORDER)


def predictor_points(profile: str) -> Call[list[schemas.PredictorPointOut]]:
    params = (("profile", profile),) if profile else ()
    return Call(method="GET", path=_path("lab", "points"), params=params, read=_POINTS)


def add_predictor_point(request: schemas.PredictorPointIn) -> Call[schemas.PredictorPointOut]:
    return Call(method="POST", path=_path("lab", "points"), body=request, read=_POINT)


# ── projects and operation ───────────────────────────────────────────────────────────────────────


def projects() -> Call[list[schemas.ProjectOut]]:
    return Call(method="GET", path=_path("projects"), read=_PROJECTS)


def project(name: str) -> Call[schemas.ProjectOut]:
    return Call(method="GET", path=_path("projects", name), read=_PROJECT)


def apply_project(name: str, archive: bytes) -> Call[schemas.ProjectOut]:
    path = _path("projects", name)
    return Call(method="PUT", path=path, content=archive, read=_PROJECT, timeout_s=120.0)


def audit(*, offset: int, limit: int) -> Call[list[schemas.AuditOut]]:
    return Call(method="GET", path=_path("audit"), params=_window(offset, limit), read=_AUDIT)


def create_token(request: schemas.TokenIn) -> Call[schemas.TokenOut]:
    return Call(method="POST", path=_path("tokens"), body=request, read=_TOKEN)
