"""The client for asyncio: the same methods as `fleet.client.client.Client`, awaited."""

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
from fleet.client.calls import MAX_PAGE_ROWS, PAGE_ROWS, Call, LabBlobKind, RolloutAction
from fleet.client.evidence_schemas import EvidenceOut
from fleet.devices import sheet

T = TypeVar("T")


class AsyncClient:
    """The same for asyncio; see `Client`."""

    def __init__(
        self, base_url: str, token: str = "", *, verify: ssl.SSLContext | bool = True
    ) -> None:
        self._url = sending.base_address(base_url)
        self._http = httpx.AsyncClient(
            base_url=self._url, headers=sending.headers(token), verify=verify
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def send(self, call: Call[T]) -> T:
        """Send any call of `fleet.client.calls`.

        Raises:
            ApiError: refused, unreachable, or an unexpected answer.
        """
        try:
            response = await self._http.request(call.method, call.path, **sending.arguments(call))
        except httpx.HTTPError as error:
            raise sending.unreachable(self._url, error) from error
        return call.answer(response)

    async def overview(self) -> schemas.Overview:
        return await self.send(calls.overview())

    async def devices(
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
        return await self.send(
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

    async def device(self, device_id: str) -> schemas.DeviceDetail:
        return await self.send(calls.device(device_id))

    async def assign_together(
        self, device_id: str, request: schemas.GroupIn
    ) -> list[schemas.AssignedOut]:
        """Versions of several models for one device, installed all or none."""
        return await self.send(calls.assign_together(device_id, request))

    async def label_devices(self, request: registry_schemas.LabelsIn) -> registry_schemas.LabelsOut:
        """Set and remove labels on every device that a query means."""
        return await self.send(calls.label_devices(request))

    async def import_devices(
        self, data: bytes, form: sheet.Form, *, dry_run: bool = False
    ) -> registry_schemas.ImportOut:
        """Take the labels of a table over (`fleet.devices.sheet`), all or nothing."""
        return await self.send(calls.import_devices(data, form, dry_run=dry_run))

    async def device_changes(
        self, device_id: str, *, limit: int = PAGE_ROWS
    ) -> list[registry_schemas.HistoryOut]:
        """What became of a device's presence, twin and labels, newest first."""
        return await self.send(calls.device_changes(device_id, limit=limit))

    async def groups(self) -> list[registry_schemas.DeviceGroupOut]:
        return await self.send(calls.groups())

    async def group(self, name: str) -> registry_schemas.DeviceGroupOut:
        return await self.send(calls.group(name))

    async def create_group(
        self, request: registry_schemas.DeviceGroupIn
    ) -> registry_schemas.DeviceGroupOut:
        """A group by a query, or with members."""
        return await self.send(calls.create_group(request))

    async def change_group(
        self, name: str, request: registry_schemas.DeviceGroupChange
    ) -> registry_schemas.DeviceGroupOut:
        """Another query or description; what is None stays."""
        return await self.send(calls.change_group(name, request))

    async def delete_group(self, name: str) -> None:
        """Forget a group that nothing uses; its devices stay."""
        await self.send(calls.delete_group(name))

    async def change_members(
        self, name: str, request: registry_schemas.MembersIn
    ) -> registry_schemas.DeviceGroupOut:
        return await self.send(calls.change_members(name, request))

    async def create_claims(self, request: schemas.ClaimIn) -> list[ClaimFile]:
        """New claims with their one-time secrets, which are never shown again."""
        return await self.send(calls.create_claims(request))

    async def claims(self, batch: str = "") -> list[schemas.ClaimOut]:
        """Newest first; of one batch where it is named."""
        return await self.send(calls.claims(batch))

    async def revoke_claim(self, claim_id: str) -> None:
        await self.send(calls.revoke_claim(claim_id))

    async def register_below(
        self, gateway: str, request: gateway_schemas.BelowIn
    ) -> gateway_schemas.BelowOut:
        """Register devices that an enrolled device speaks for."""
        return await self.send(calls.register_below(gateway, request))

    async def revoke_claims(self, batch: str) -> enrolment_schemas.ClaimsRevoked:
        """Revoke what is still open of a batch."""
        return await self.send(calls.revoke_claims(batch))

    async def revoke_device(self, device_id: str, reason: str = "") -> None:
        """Take a device's identity away; its live session ends within seconds."""
        await self.send(calls.revoke_device(device_id, reason))

    async def enrol(self, request: EnrolRequest) -> EnrolReply:
        return await self.send(calls.enrol(request))

    async def models(
        self, *, model: str = "", offset: int = 0, limit: int = PAGE_ROWS
    ) -> rollout_schemas.ModelPage:
        """One page of the versions (of one model), by name, newest version first."""
        return await self.send(calls.models(model=model, offset=offset, limit=limit))

    async def every_model(self, model: str = "") -> list[schemas.ModelOut]:
        """All versions (of one model), page by page."""
        found: list[schemas.ModelOut] = []
        while True:
            page = await self.models(model=model, offset=len(found), limit=MAX_PAGE_ROWS)
            found += page.items
            if len(found) >= page.total or not page.items:
                return found

    async def model(self, name: str, version: int) -> schemas.ModelDetail:
        return await self.send(calls.model(name, version))

    async def approve(self, name: str, version: int, reason: str = "") -> schemas.ModelDetail:
        return await self.send(calls.approve(name, version, reason))

    async def reject(self, name: str, version: int, reason: str = "") -> schemas.ModelDetail:
        return await self.send(calls.reject(name, version, reason))

    async def publish(
        self, name: str, version: int, request: schemas.PublishIn | None = None
    ) -> schemas.ModelDetail:
        """Sign and publish the selected variant of each profile, or those named in `request`."""
        return await self.send(calls.publish(name, version, request or schemas.PublishIn()))

    async def bundle(self, variant_id: int) -> bytes:
        """A candidate's bundle: the very tar that a device would get."""
        return await self.send(calls.bundle(variant_id))

    async def export(self, request: schemas.ExportIn) -> schemas.ExportOut:
        """What devices need to install without a line: signed files, and which blobs to copy."""
        return await self.send(calls.export(request))

    async def export_blob(self, target: str, sha256: str, *, offset: int) -> bytes:
        """The next piece of a blob of a release, from `offset` on; empty beyond its end."""
        return await self.send(calls.export_blob(target, sha256, offset=offset))

    async def rollouts(
        self, *, model: str = "", state: str = "", offset: int = 0, limit: int = PAGE_ROWS
    ) -> rollout_schemas.RolloutPage:
        """One page of the rollouts that match both filters, newest first."""
        return await self.send(calls.rollouts(model=model, state=state, offset=offset, limit=limit))

    async def rollout(self, rollout_id: str) -> schemas.RolloutDetail:
        return await self.send(calls.rollout(rollout_id))

    async def rollout_evidence(self, rollout_id: str) -> EvidenceOut:
        return await self.send(calls.rollout_evidence(rollout_id))

    async def start_rollout(self, request: schemas.RolloutIn) -> schemas.RolloutDetail:
        return await self.send(calls.start_rollout(request))

    async def plan_rollout(self, request: schemas.RolloutIn) -> rollout_schemas.RolloutPlanOut:
        """What starting it would do now; nothing is started."""
        return await self.send(calls.plan_rollout(request))

    async def rollout_assignments(
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
        return await self.send(
            calls.rollout_assignments(
                rollout_id, wave=wave, phase=phase, failed=failed, offset=offset, limit=limit
            )
        )

    async def explain_rollout(self, rollout_id: str) -> rollout_schemas.ExplainOut:
        """Why it is where it is, and what it waits for."""
        return await self.send(calls.explain_rollout(rollout_id))

    async def trial(self, rollout_id: str) -> trial_schemas.TrialOut:
        return await self.send(calls.trial(rollout_id))

    async def share_trial(self, rollout_id: str, share: float) -> trial_schemas.TrialOut:
        """`share` of the requests, 0 to 1."""
        return await self.send(calls.share_trial(rollout_id, share))

    async def promote_trial(
        self, rollout_id: str, request: trial_schemas.PromoteIn
    ) -> schemas.RolloutDetail:
        return await self.send(calls.promote_trial(rollout_id, request))

    async def steer_rollout(
        self, rollout_id: str, action: RolloutAction, reason: str = ""
    ) -> schemas.RolloutDetail:
        return await self.send(calls.steer_rollout(rollout_id, action, reason))

    async def drift(self, model: str = "") -> list[schemas.DriftOut]:
        return await self.send(calls.drift(model))

    async def check_drift(self, model: str) -> list[schemas.DriftOut]:
        return await self.send(calls.check_drift(model))

    async def collection(self, model: str = "") -> schemas.CollectionOut:
        return await self.send(calls.collection(model))

    async def held_out_inputs(self, dataset: str, *, limit: int) -> bytes:
        """Inputs of a dataset version that were never trained on: an `.npz` of `input:NAME`."""
        return await self.send(calls.held_out_inputs(dataset, limit=limit))

    async def jobs(self) -> list[schemas.JobOut]:
        return await self.send(calls.jobs())

    async def job(self, job_id: str) -> schemas.JobOut:
        return await self.send(calls.job(job_id))

    async def start_job(self, request: schemas.JobIn) -> schemas.JobOut:
        return await self.send(calls.start_job(request))

    async def cancel_job(self, job_id: str) -> schemas.JobOut:
        return await self.send(calls.cancel_job(job_id))

    async def job_report(self, job_id: str) -> str:
        """The optimiser's report of a job, as one HTML page."""
        return await self.send(calls.job_report(job_id))

    async def job_report_json(self, job_id: str) -> str:
        """The same report as JSON."""
        return await self.send(calls.job_report_json(job_id))

    async def lab_devices(self, on: str) -> list[schemas.LabDeviceOut]:
        """The devices that "device:ID" or "group:NAME" means, and why one cannot measure now."""
        return await self.send(calls.lab_devices(on))

    async def lab_blob(self, sha256: str) -> schemas.LabBlobOut:
        return await self.send(calls.lab_blob(sha256))

    async def upload_lab_blob(self, kind: LabBlobKind, data: bytes) -> schemas.LabBlobOut:
        """Store a packed bundle or samples for devices to fetch when they are ordered to."""
        return await self.send(calls.upload_lab_blob(kind, data))

    async def order_measurement(self, request: schemas.LabOrderIn) -> schemas.LabOrderOut:
        """Have a lab device measure a candidate."""
        return await self.send(calls.order_measurement(request))

    async def lab_order(self, order_id: str) -> schemas.LabOrderOut:
        return await self.send(calls.lab_order(order_id))

    async def cancel_lab_order(self, order_id: str) -> schemas.LabOrderOut:
        return await self.send(calls.cancel_lab_order(order_id))

    async def predictor_points(self, profile: str = "") -> list[schemas.PredictorPointOut]:
        """What devices took, beside what figures alone foretold."""
        return await self.send(calls.predictor_points(profile))

    async def add_predictor_point(
        self, request: schemas.PredictorPointIn
    ) -> schemas.PredictorPointOut:
        """Let a device's result correct the predictor."""
        return await self.send(calls.add_predictor_point(request))

    async def projects(self) -> list[schemas.ProjectOut]:
        return await self.send(calls.projects())

    async def project(self, name: str) -> schemas.ProjectOut:
        return await self.send(calls.project(name))

    async def apply_project(self, name: str, archive: bytes) -> schemas.ProjectOut:
        """Apply a project; `archive` is the tar of its skerry.yaml and the files it names."""
        return await self.send(calls.apply_project(name, archive))

    async def audit(self, *, offset: int = 0, limit: int = PAGE_ROWS) -> list[schemas.AuditOut]:
        """Entries of the audit, newest first."""
        return await self.send(calls.audit(offset=offset, limit=limit))

    async def create_token(self, request: schemas.TokenIn) -> schemas.TokenOut:
        return await self.send(calls.create_token(request))

    # ── commands ─────────────────────────────────────────────────────────────────────────────────

    async def ask_devices(self, request: command_schemas.CommandIn) -> command_schemas.CommandBatch:
        """Ask devices for a command, all of them or none."""
        return await self.send(command_calls.ask(request))

    async def commands(
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
        return await self.send(
            command_calls.commands(
                device=device, state=state, batch=batch, name=name, offset=offset, limit=limit
            )
        )

    async def command(self, command_id: str) -> command_schemas.CommandOut:
        return await self.send(command_calls.command(command_id))

    async def command_attachment(self, command_id: str) -> bytes:
        """What the device sent with its answer: its log, or its diagnostics."""
        return await self.send(command_calls.attachment(command_id))

    async def cancel_command(self, command_id: str) -> command_schemas.CommandOut:
        return await self.send(command_calls.cancel(command_id))

    async def cancel_commands(self, batch: str) -> command_schemas.CommandsCancelled:
        """Take back what no device of a batch has answered yet."""
        return await self.send(command_calls.cancel_batch(batch))
