"""A control plane in memory with the real console on it: run as a script with a port.

Serves the `/v1` routes from `double_data.World`; a test changes it by `POST /double/KNOB`.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import uvicorn
from double_data import World, full, sha
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from fleet.client import command_schemas, rollout_schemas, schemas
from fleet.client.client import AsyncClient
from fleet.client.enrolment_schemas import RevocationIn
from fleet.client.registry_schemas import DeviceGroupIn, DeviceGroupOut
from fleet.console import mount
from fleet.devices.facts import DeviceFacts
from fleet.devices.query import parse

TOKENS = {"operator-token": "operator", "viewer-token": "viewer"}


def create(port: int) -> FastAPI:
    app = FastAPI()
    world = {"now": full()}

    def w() -> World:
        return world["now"]

    @app.exception_handler(StarletteHTTPException)
    def problem(_: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code)

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        if request.url.path.startswith("/v1/"):
            role = TOKENS.get(request.headers.get("authorization", "").removeprefix("Bearer "))
            if role is None:
                return JSONResponse({"error": "unknown or revoked token"}, 401)
            if w().broken:
                return JSONResponse({"error": "database is locked; try again"}, 503)
            if role == "viewer" and request.method != "GET":
                return JSONResponse(
                    {"error": "role viewer may not do this; it takes operator"}, 403
                )
        response: Response = await call_next(request)
        return response

    @app.post("/double/{knob}")
    def turn(knob: str, value: str = "") -> dict[str, str]:
        if knob == "reset":
            world["now"] = full() if value != "empty" else World()
        elif knob == "broken":
            w().broken = value == "yes"
        elif knob == "offline":
            device = w().devices[value]
            w().devices[value] = device.model_copy(update={"online": False})
        elif knob == "progress":
            w().jobs["build-4c1d"] = (
                w().jobs["build-4c1d"].model_copy(update={"progress": float(value)})
            )
        elif knob == "drift":
            newest = max(r.at for r in w().drift)
            w().drift.append(
                w()
                .drift[-1]
                .model_copy(
                    update={"scope": "fleet", "verdict": "ok", "statistic": 5.0, "at": newest + 600}
                )
            )
        return {}

    _fleet(app, w)
    _models(app, w)
    _rollouts(app, w)
    _learning(app, w)
    mount(app, lambda token: AsyncClient(f"http://127.0.0.1:{port}", token), "a-test-secret")
    return app


def _matches(query: str, device: schemas.DeviceOut, groups: dict[str, DeviceGroupOut]) -> bool:
    asked = parse(query)
    inside = {
        name
        for name in asked.groups & groups.keys()
        if _matches(groups[name].query, device, groups)
    }
    facts = DeviceFacts(
        device.id, device.profile, device.online, labels=device.labels, groups=frozenset(inside)
    )
    return asked.matches(facts)


def _fleet(app: FastAPI, w: Any) -> None:
    @app.get("/v1/overview")
    def overview() -> schemas.Overview:
        return schemas.Overview(
            devices=len(w().devices),
            online=sum(device.online for device in w().devices.values()),
            models=len({model for model, _ in w().models}),
            rollouts_running=sum(r.state == "RUNNING" for r in w().rollouts.values()),
            jobs_running=sum(job.state == "running" for job in w().jobs.values()),
            drifting=1 if w().drift else 0,
            samples=w().collection.total,
            broker_connected=True,
            version="0.1.0",
        )

    @app.get("/v1/devices")
    def devices(
        request: Request,
        offset: int = 0,
        limit: int = 100,
        search: str = "",
        profile: str = "",
        online: bool | None = None,
        query: str = "",
    ) -> schemas.DevicePage:
        labels = dict(pair.split("=", 1) for pair in request.query_params.getlist("label"))
        found = [
            device
            for device in w().devices.values()
            if (search in device.id or search in device.profile)
            and (not profile or device.profile == profile)
            and (online is None or device.online == online)
            and all(device.labels.get(key) == value for key, value in labels.items())
            and (not query or _matches(query, device, w().groups))
        ]
        items = [schemas.DeviceOut(**d.model_dump()) for d in found[offset : offset + limit]]
        return schemas.DevicePage(total=len(found), offset=offset, items=items)

    @app.get("/v1/groups")
    def groups() -> list[DeviceGroupOut]:
        return [
            group.model_copy(
                update={
                    "devices": sum(
                        _matches(group.query, each, w().groups) for each in w().devices.values()
                    )
                }
            )
            for group in w().groups.values()
        ]

    @app.post("/v1/groups", status_code=201)
    def create_group(body: DeviceGroupIn) -> DeviceGroupOut:
        if body.name in w().groups:
            raise HTTPException(409, f"group {body.name!r} exists already")
        w().groups[body.name] = DeviceGroupOut(
            name=body.name,
            query=body.query,
            description=body.description,
            devices=0,
            created_by="operator",
            created_at=time.time(),
            updated_at=time.time(),
        )
        return next(group for group in groups() if group.name == body.name)

    @app.delete("/v1/groups/{name}", status_code=204)
    def delete_group(name: str) -> None:
        w().groups.pop(name, None)

    @app.get("/v1/devices/{device_id}")
    def device(device_id: str) -> schemas.DeviceDetail:
        return _found(w().devices.get(device_id), f"no device {device_id!r}")

    @app.post("/v1/devices/{device_id}/revoke", status_code=204)
    def revoke_device(device_id: str, body: RevocationIn) -> None:
        changed = {"revoked": True, "revoked_reason": body.reason, "online": False}
        w().devices[device_id] = w().devices[device_id].model_copy(update=changed)

    @app.get("/v1/commands")
    def commands(device: str = "") -> command_schemas.CommandPage:
        found = [each for each in w().commands.values() if each.device == device][::-1]
        return command_schemas.CommandPage(total=len(found), offset=0, items=found)

    @app.post("/v1/commands", status_code=201)
    def ask(body: command_schemas.CommandIn) -> command_schemas.CommandBatch:
        made = w().ask(body, time.time())
        return command_schemas.CommandBatch(batch=made.batch, total=1, items=[made])

    @app.get("/v1/commands/{command_id}")
    def command(command_id: str) -> command_schemas.CommandOut:
        return _found(w().commands.get(command_id), "no such command")

    @app.get("/v1/commands/{command_id}/attachment")
    def attachment(command_id: str) -> Response:
        return Response(b"2026-03-01 agent.started", media_type="text/plain")

    @app.post("/v1/commands/{command_id}/cancel")
    def take_back(command_id: str) -> command_schemas.CommandOut:
        row = _found(w().commands.get(command_id), "no such command")
        w().commands[command_id] = row.model_copy(
            update={"state": "cancelled", "detail": "taken back by operator"}
        )
        return w().commands[command_id]

    @app.get("/v1/claims")
    def claims() -> list[schemas.ClaimOut]:
        return list(w().claims.values())

    @app.post("/v1/claims", status_code=201)
    def create_claims(body: schemas.ClaimIn) -> list[dict[str, str]]:
        if body.profile not in ("this-machine", "generic-x86-64"):
            raise HTTPException(400, f"no profile {body.profile!r}; did you mean 'this-machine'?")
        files = []
        for _ in range(body.count):
            name = f"c{len(w().claims):x}new"
            now = time.time()
            w().claims[name] = schemas.ClaimOut(
                id=name, profile=body.profile, labels=body.labels, created_at=now,
                expires_at=now + body.ttl_s, used_by=None, revoked=False, batch=body.batch or "",
            )  # fmt: skip
            files.append(
                {"url": "http://127.0.0.1", "claim_id": name, "secret": sha(name),
                 "profile": body.profile, "ca_pem": "PEM", "image_root": "{}",
                 "director_root": "{}"}
            )  # fmt: skip
        return files

    @app.delete("/v1/claims/{claim_id}", status_code=204)
    def revoke(claim_id: str) -> None:
        w().claims[claim_id] = w().claims[claim_id].model_copy(update={"revoked": True})

    @app.get("/v1/audit")
    def audit(offset: int = 0, limit: int = 100) -> list[schemas.AuditOut]:
        return list(reversed(w().audit))[offset : offset + limit]


def _models(app: FastAPI, w: Any) -> None:
    @app.get("/v1/models")
    def models() -> rollout_schemas.ModelPage:
        items = [schemas.ModelOut(**model.model_dump()) for model in w().models.values()]
        return rollout_schemas.ModelPage(items=items, total=len(items), offset=0)

    @app.get("/v1/models/{name}/{version}")
    def model(name: str, version: int) -> schemas.ModelDetail:
        return _found(w().models.get((name, version)), f"no version {version} of {name!r}")

    def move(name: str, version: int, state: str, reason: str) -> schemas.ModelDetail:
        before = model(name, version)
        step = {"from_state": before.state, "to_state": state, "actor": "operator",
                "reason": reason, "at": time.time()}  # fmt: skip
        after = before.model_copy(update={"state": state, "promotions": [*before.promotions, step]})
        w().models[name, version] = after
        return after

    @app.post("/v1/models/{name}/{version}/approve")
    def approve(name: str, version: int, body: schemas.ApprovalIn) -> schemas.ModelDetail:
        return move(name, version, "approved", body.reason)

    @app.post("/v1/models/{name}/{version}/reject")
    def reject(name: str, version: int, body: schemas.ApprovalIn) -> schemas.ModelDetail:
        return move(name, version, "rejected", body.reason)

    @app.post("/v1/models/{name}/{version}/publish")
    def publish(name: str, version: int, body: schemas.PublishIn) -> schemas.ModelDetail:
        return move(name, version, "published", f"variants {body.variants}")

    @app.get("/v1/variants/{variant_id}/bundle")
    def bundle(variant_id: int) -> Response:
        return Response(f"bundle of {variant_id}".encode(), media_type="application/x-tar")


def _rollouts(app: FastAPI, w: Any) -> None:
    @app.get("/v1/rollouts")
    def rollouts(offset: int = 0, limit: int = 100) -> rollout_schemas.RolloutPage:
        ranked = sorted(w().rollouts.values(), key=lambda rollout: -rollout.created_at)
        items = [schemas.RolloutOut(**rollout.model_dump()) for rollout in ranked]
        return rollout_schemas.RolloutPage(
            items=items[offset : offset + limit], total=len(items), offset=offset
        )

    @app.get("/v1/rollouts/{rollout_id}")
    def rollout(rollout_id: str) -> schemas.RolloutDetail:
        return _found(w().rollouts.get(rollout_id), f"no rollout {rollout_id!r}")

    @app.get("/v1/rollouts/{rollout_id}/explain")
    def explain(rollout_id: str) -> rollout_schemas.ExplainOut:
        found = rollout(rollout_id)
        return rollout_schemas.ExplainOut(
            id=found.id, state=found.state, headline=f"It is {found.state.lower()}.", lines=[],
            held_up=[], held_up_total=0, waits_for="", plan={},
        )  # fmt: skip

    @app.post("/v1/rollouts", status_code=201)
    def start(body: schemas.RolloutIn) -> schemas.RolloutDetail:
        now = time.time()
        made = schemas.RolloutDetail(
            id="r-new1", model=body.model, version=body.version, state="SCHEDULED",
            created_by="operator", created_at=now, updated_at=now, plan=body.model_dump(),
            waves=[{"index": i, "state": "PENDING", "devices": wave.count or 10, "healthy": 0,
                    "failed": 0, "pending": wave.count or 10, "reason": ""}
                   for i, wave in enumerate(body.waves)],
            assignments=[], gates=[],
        )  # fmt: skip
        w().rollouts[made.id] = made
        return made

    @app.post("/v1/rollouts/{rollout_id}/{verb}")
    def steer(rollout_id: str, verb: str) -> schemas.RolloutDetail:
        states = {"pause": "PAUSED", "resume": "RUNNING", "halt": "HALTED",
                  "rollback": "ROLLING_BACK", "cancel": "CANCELLED"}  # fmt: skip
        after = rollout(rollout_id).model_copy(update={"state": states[verb]})
        w().rollouts[rollout_id] = after
        return after


def _learning(app: FastAPI, w: Any) -> None:
    @app.get("/v1/drift")
    def drift(model: str = "") -> list[schemas.DriftOut]:
        return sorted(w().drift, key=lambda report: -report.at)

    @app.post("/v1/drift/check")
    def check(model: str) -> list[schemas.DriftOut]:
        return []

    @app.get("/v1/collection")
    def collection(model: str = "") -> schemas.CollectionOut:
        return w().collection

    @app.get("/v1/projects")
    def projects() -> list[schemas.ProjectOut]:
        return w().projects

    @app.get("/v1/jobs")
    def jobs() -> list[schemas.JobOut]:
        return sorted(w().jobs.values(), key=lambda job: -job.created_at)

    @app.post("/v1/jobs", status_code=201)
    def start(body: schemas.JobIn) -> schemas.JobOut:
        now = time.time()
        made = schemas.JobOut(
            id=f"build-{len(w().jobs)}new", kind=body.kind, project=body.project, state="queued",
            step="", progress=0.0, params=body.params, result={}, error="", created_at=now,
            updated_at=now,
        )  # fmt: skip
        w().jobs[made.id] = made
        return made

    @app.get("/v1/jobs/{job_id}")
    def job(job_id: str) -> schemas.JobOut:
        return _found(w().jobs.get(job_id), f"no job {job_id!r}")

    @app.post("/v1/jobs/{job_id}/cancel")
    def cancel(job_id: str) -> schemas.JobOut:
        w().jobs[job_id] = job(job_id).model_copy(update={"state": "cancelled"})
        return w().jobs[job_id]

    @app.get("/v1/jobs/{job_id}/report")
    def report(job_id: str) -> HTMLResponse:
        return HTMLResponse("<h1>Report</h1><script>document.title = 'ran'</script>")


def _found(thing: Any, problem: str) -> Any:
    if thing is None:
        raise HTTPException(404, problem)
    return thing


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    port = parser.parse_args().port
    uvicorn.run(create(port), host="127.0.0.1", port=port, log_level="warning")
