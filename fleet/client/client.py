"""The typed client of the control plane's API: `Client`, and `AsyncClient` with the same methods.

Console and command line talk to the control plane through these and nothing else, so whatever a
person can click can be scripted.  Every method raises `ApiError` with one line to show.  A client
never retries: it cannot know whether a command was carried out.  Both are context managers.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TypeVar

import httpx

from edge_agent.wire.messages import ClaimFile, EnrolReply, EnrolRequest
from fleet.client import (
    calls,
    command_calls,
    command_schemas,
    enrolment_schemas,
    gateway_schemas,
    registry_schemas,
    rollout_schemas,
    schemas,
    sending,
    trial_schemas,
)
from fleet.client.async_client import AsyncClient
from fleet.client.calls import MAX_PAGE_ROWS, PAGE_ROWS, Call, LabBlobKind, RolloutAction
from fleet.client.errors import ApiError
from fleet.client.evidence_schemas import EvidenceOut
from fleet.devices import sheet

__all__ = ["ApiError", "AsyncClient", "Client"]

T = TypeVar("T")


class Client:
    """Synchronous client.

    Args:
        base_url: address of the control plane, e.g. "http://127.0.0.1:8080".
        token: API token; empty for the routes that take none.
        verify: TLS context for https addresses, or True for the system's authorities.
    """

    def __init__(
        self, base_url: str, token: str = "", *, verify: ssl.SSLContext | bool = True
    ) -> None:
        self._url = sending.base_address(base_url)
        self._http = httpx.Client(base_url=self._url, headers=sending.headers(token), verify=verify)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def send(self, call: Call[T]) -> T:
        """Send any call of `fleet.client.calls`.

        Raises:
            ApiError: refused, unreachable, or an unexpected answer.
        """
        try:
            response = self._http.request(call.method, call.path, **sending.arguments(call))
        except httpx.HTTPError as error:
            raise sending.unreachable(self._url, error) from error
        return call.answer(response)

    def overview(self) -> schemas.Overview:
        return self.send(calls.overview())

    def devices(
        self,
        *,
        offset: int = 0,
        limit: int = PAGE_ROWS,
        search: str = "",
        labels: Sequence[str] = (),
        profile: str = "",
        online: bool | None = None,
        query: str = "",
    ) -> schemas.DevicePage:
        """One page of the devices that match all filters; `labels` are "KEY=VALUE"; `query` is in
        the language of `fleet.devices.query`."""
        return self.send(
            calls.devices(
                offset=offset,
                limit=limit,
                search=search,
                labels=labels,
                profile=profile,
                online=online,
                query=query,
            )
        )

    def device(self, device_id: str) -> schemas.DeviceDetail:
        return self.send(calls.device(device_id))

    def assign_together(
        self, device_id: str, request: schemas.GroupIn
    ) -> list[schemas.AssignedOut]:
        """Versions of several models for one device, installed all or none."""
        return self.send(calls.assign_together(device_id, request))

    def label_devices(self, request: registry_schemas.LabelsIn) -> registry_schemas.LabelsOut:
        """Set and remove labels on every device that a query means."""
        return self.send(calls.label_devices(request))

    def import_devices(
        self, data: bytes, form: sheet.Form, *, dry_run: bool = False
    ) -> registry_schemas.ImportOut:
        """Take the labels of a table over (`fleet.devices.sheet`), all or nothing."""
        return self.send(calls.import_devices(data, form, dry_run=dry_run))

    def device_changes(
        self, device_id: str, *, limit: int = PAGE_ROWS
    ) -> list[registry_schemas.HistoryOut]:
        """What became of a device's presence, twin and labels, newest first."""
        return self.send(calls.device_changes(device_id, limit=limit))

    def groups(self) -> list[registry_schemas.DeviceGroupOut]:
        return self.send(calls.groups())

    def group(self, name: str) -> registry_schemas.DeviceGroupOut:
        return self.send(calls.group(name))

    def create_group(
        self, request: registry_schemas.DeviceGroupIn
    ) -> registry_schemas.DeviceGroupOut:
        """A group by a query, or with members."""
        return self.send(calls.create_group(request))

    def change_group(
        self, name: str, request: registry_schemas.DeviceGroupChange
    ) -> registry_schemas.DeviceGroupOut:
        """Another query or description; what is None stays."""
        return self.send(calls.change_group(name, request))

    def delete_group(self, name: str) -> None:
        """Forget a group that nothing uses; its devices stay."""
        self.send(calls.delete_group(name))

    def change_members(
        self, name: str, request: registry_schemas.MembersIn
    ) -> registry_schemas.DeviceGroupOut:
        return self.send(calls.change_members(name, request))

    def create_claims(self, request: schemas.ClaimIn) -> list[ClaimFile]:
        """New claims with their one-time secrets, which are never shown again."""
        return self.send(calls.create_claims(request))

    def claims(self, batch: str = "") -> list[schemas.ClaimOut]:
        """Newest first; of one batch where it is named."""
        return self.send(calls.claims(batch))

    def revoke_claim(self, claim_id: str) -> None:
        self.send(calls.revoke_claim(claim_id))

    def register_below(
        self, gateway: str, request: gateway_schemas.BelowIn
    ) -> gateway_schemas.BelowOut:
        """Register devices that an enrolled device speaks for."""
        return self.send(calls.register_below(gateway, request))

    def revoke_claims(self, batch: str) -> enrolment_schemas.ClaimsRevoked:
        """Revoke what is still open of a batch."""
        return self.send(calls.revoke_claims(batch))

    def revoke_device(self, device_id: str, reason: str = "") -> None:
        """Take a device's identity away; its live session ends within seconds."""
        self.send(calls.revoke_device(device_id, reason))

    def enrol(self, request: EnrolRequest) -> EnrolReply:
        return self.send(calls.enrol(request))

    def models(
        self, *, model: str = "", offset: int = 0, limit: int = PAGE_ROWS
    ) -> rollout_schemas.ModelPage:
        """One page of the versions (of one model), by name, newest version first."""
        return self.send(calls.models(model=model, offset=offset, limit=limit))

    def every_model(self, model: str = "") -> list[schemas.ModelOut]:
        """All versions (of one model), page by page."""
        found: list[schemas.ModelOut] = []
        while True:
            page = self.models(model=model, offset=len(found), limit=MAX_PAGE_ROWS)
            found += page.items
            if len(found) >= page.total or not page.items:
                return found

    def model(self, name: str, version: int) -> schemas.ModelDetail:
        return self.send(calls.model(name, version))

    def approve(self, name: str, version: int, reason: str = "") -> schemas.ModelDetail:
        return self.send(calls.approve(name, version, reason))

    def reject(self, name: str, version: int, reason: str = "") -> schemas.ModelDetail:
        return self.send(calls.reject(name, version, reason))

    def publish(
        self, name: str, version: int, request: schemas.PublishIn | None = None
    ) -> schemas.ModelDetail:
        """Sign and publish the selected variant of each profile, or those named in `request`."""
        return self.send(calls.publish(name, version, request or schemas.PublishIn()))

    def bundle(self, variant_id: int) -> bytes:
        """A candidate's bundle: the very tar that a device would get."""
        return self.send(calls.bundle(variant_id))

    def export(self, request: schemas.ExportIn) -> schemas.ExportOut:
        """What devices need to install without a line: signed files, and which blobs to copy."""
        return self.send(calls.export(request))

    def export_blob(self, target: str, sha256: str, *, offset: int) -> bytes:
        """The next piece of a blob of a release, from `offset` on; empty beyond its end."""
        return self.send(calls.export_blob(target, sha256, offset=offset))

    def rollouts(
        self, *, model: str = "", state: str = "", offset: int = 0, limit: int = PAGE_ROWS
    ) -> rollout_schemas.RolloutPage:
        """One page of the rollouts that match both filters, newest first."""
        return self.send(calls.rollouts(model=model, state=state, offset=offset, limit=limit))

    def rollout(self, rollout_id: str) -> schemas.RolloutDetail:
        return self.send(calls.rollout(rollout_id))

    def rollout_evidence(self, rollout_id: str) -> EvidenceOut:
        return self.send(calls.rollout_evidence(rollout_id))

    def start_rollout(self, request: schemas.RolloutIn) -> schemas.RolloutDetail:
        return self.send(calls.start_rollout(request))

    def plan_rollout(self, request: schemas.RolloutIn) -> rollout_schemas.RolloutPlanOut:
        """What starting it would do now; nothing is started."""
        return self.send(calls.plan_rollout(request))

    def rollout_assignments(
        self,
        rollout_id: str,
        *,
        wave: int | None = None,
        phase: str = "",
        failed: bool = False,
        offset: int = 0,
        limit: int = PAGE_ROWS,
    ) -> rollout_schemas.AssignmentPage:
        """One page of a rollout's devices, those that need a look first."""
        return self.send(
            calls.rollout_assignments(
                rollout_id, wave=wave, phase=phase, failed=failed, offset=offset, limit=limit
            )
        )

    def explain_rollout(self, rollout_id: str) -> rollout_schemas.ExplainOut:
        """Why it is where it is, and what it waits for."""
        return self.send(calls.explain_rollout(rollout_id))

    def trial(self, rollout_id: str) -> trial_schemas.TrialOut:
        return self.send(calls.trial(rollout_id))

    def share_trial(self, rollout_id: str, share: float) -> trial_schemas.TrialOut:
        """`share` of the requests, 0 to 1."""
        return self.send(calls.share_trial(rollout_id, share))

    def promote_trial(
        self, rollout_id: str, request: trial_schemas.PromoteIn
    ) -> schemas.RolloutDetail:
        return self.send(calls.promote_trial(rollout_id, request))

    def steer_rollout(
        self, rollout_id: str, action: RolloutAction, reason: str = ""
    ) -> schemas.RolloutDetail:
        return self.send(calls.steer_rollout(rollout_id, action, reason))

    def drift(self, model: str = "") -> list[schemas.DriftOut]:
        return self.send(calls.drift(model))

    def check_drift(self, model: str) -> list[schemas.DriftOut]:
        return self.send(calls.check_drift(model))

    def collection(self, model: str = "") -> schemas.CollectionOut:
        return self.send(calls.collection(model))

    def held_out_inputs(self, dataset: str, *, limit: int) -> bytes:
        """Inputs of a dataset version that were never trained on: an `.npz` of `input:NAME`."""
        return self.send(calls.held_out_inputs(dataset, limit=limit))

    def jobs(self) -> list[schemas.JobOut]:
        return self.send(calls.jobs())

    def job(self, job_id: str) -> schemas.JobOut:
        return self.send(calls.job(job_id))

    def start_job(self, request: schemas.JobIn) -> schemas.JobOut:
        return self.send(calls.start_job(request))

    def cancel_job(self, job_id: str) -> schemas.JobOut:
        return self.send(calls.cancel_job(job_id))

    def job_report(self, job_id: str) -> str:
        """The optimiser's report of a job, as one HTML page."""
        return self.send(calls.job_report(job_id))

    def job_report_json(self, job_id: str) -> str:
        """The same report as JSON."""
        return self.send(calls.job_report_json(job_id))

    def lab_devices(self, on: str) -> list[schemas.LabDeviceOut]:
        """The devices that "device:ID" or "group:NAME" means, and why one cannot measure now."""
        return self.send(calls.lab_devices(on))

    def lab_blob(self, sha256: str) -> schemas.LabBlobOut:
        return self.send(calls.lab_blob(sha256))

    def upload_lab_blob(self, kind: LabBlobKind, data: bytes) -> schemas.LabBlobOut:
        """Store a packed bundle or samples for devices to fetch when they are ordered to."""
        return self.send(calls.upload_lab_blob(kind, data))

    def order_measurement(self, request: schemas.LabOrderIn) -> schemas.LabOrderOut:
        """Have a lab device measure a candidate."""
        return self.send(calls.order_measurement(request))

    def lab_order(self, order_id: str) -> schemas.LabOrderOut:
        return self.send(calls.lab_order(order_id))

    def cancel_lab_order(self, order_id: str) -> schemas.LabOrderOut:
        return self.send(calls.cancel_lab_order(order_id))

    def predictor_points(self, profile: str = "") -> list[schemas.PredictorPointOut]:
        """What devices took, beside what figures alone foretold."""
        return self.send(calls.predictor_points(profile))

    def add_predictor_point(self, request: schemas.PredictorPointIn) -> schemas.PredictorPointOut:
        """Let a device's result correct the predictor."""
        return self.send(calls.add_predictor_point(request))

    def projects(self) -> list[schemas.ProjectOut]:
        return self.send(calls.projects())

    def project(self, name: str) -> schemas.ProjectOut:
        return self.send(calls.project(name))

    def apply_project(self, name: str, archive: bytes) -> schemas.ProjectOut:
        """Apply a project; `archive` is the tar of its skerry.yaml and the files it names."""
        return self.send(calls.apply_project(name, archive))

    def audit(self, *, offset: int = 0, limit: int = PAGE_ROWS) -> list[schemas.AuditOut]:
        """Entries of the audit, newest first."""
        return self.send(calls.audit(offset=offset, limit=limit))

    def create_token(self, request: schemas.TokenIn) -> schemas.TokenOut:
        return self.send(calls.create_token(request))

    # ── commands ─────────────────────────────────────────────────────────────────────────────────

    def ask_devices(self, request: command_schemas.CommandIn) -> command_schemas.CommandBatch:
        """Ask devices for a command, all of them or none."""
        return self.send(command_calls.ask(request))

    def commands(
        self,
        *,
        device: str = "",
        state: str = "",
        batch: str = "",
        name: str = "",
        offset: int = 0,
        limit: int = PAGE_ROWS,
    ) -> command_schemas.CommandPage:
        """One page of commands, newest first."""
        return self.send(
            command_calls.commands(
                device=device, state=state, batch=batch, name=name, offset=offset, limit=limit
            )
        )

    def command(self, command_id: str) -> command_schemas.CommandOut:
        return self.send(command_calls.command(command_id))

    def command_attachment(self, command_id: str) -> bytes:
        """What the device sent with its answer: its log, or its diagnostics."""
        return self.send(command_calls.attachment(command_id))

    def cancel_command(self, command_id: str) -> command_schemas.CommandOut:
        return self.send(command_calls.cancel(command_id))

    def cancel_commands(self, batch: str) -> command_schemas.CommandsCancelled:
        """Take back what no device of a batch has answered yet."""
        return self.send(command_calls.cancel_batch(batch))
