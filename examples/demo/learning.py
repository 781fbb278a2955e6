"""Acts 9 to 11: the field changes, a better version is made, judged and rolled out."""

from __future__ import annotations

import httpx

from examples.demo.field import DidNotHold, require, rotate, wait_for
from examples.demo.stage import (
    FIELD_IMAGES,
    FLEET,
    JUDGED_IMAGES,
    MODEL,
    ROTATION_DEGREES,
    Stage,
    follow,
)
from fleet.client.client import Client
from fleet.client.errors import ApiError
from fleet.client.schemas import JobOut, RolloutDetail, RolloutIn, WaveIn

AGAINST_THE_CHAMPION = {"non_inferiority", "field_improvement"}


def learn(stage: Stage) -> str:
    rotated = rotate(stage.images[:FIELD_IMAGES], ROTATION_DEGREES)
    devices = list(stage.devices.values())
    for number, (image, label) in enumerate(zip(rotated, stage.labels, strict=False)):
        device = devices[number % len(devices)]
        answer = device.predict(image)
        device.correct(answer.prediction_id, int(label))
        if number % 50 == 0:
            stage.detail(f"{number} of {FIELD_IMAGES} rotated images", 0.15 * number / FIELD_IMAGES)

    def drift() -> str | None:
        newest = [r for r in stage.client.drift(MODEL) if r.scope == "fleet"]
        stage.detail(f"drift: {newest[0].verdict if newest else 'no report yet'}", 0.2)
        if newest and newest[0].verdict == "drift":
            return f"T² {newest[0].statistic:.0f} over {newest[0].threshold:.0f} at n={newest[0].n}"
        return None

    drifted = wait_for("drift is seen", drift, 60)

    def retraining() -> JobOut | None:
        jobs = [job for job in stage.client.jobs() if job.kind == "retrain"]
        stage.detail("waiting for the decision to retrain", 0.25)
        return jobs[0] if jobs else None

    job = wait_for("harm is confirmed and retraining starts by itself", retraining, 60)
    follow(stage, job.id, 300)
    detail = stage.client.model(MODEL, 2)
    verdicts = {gate.gate: gate for gate in detail.gates}
    require(
        all(gate.verdict == "pass" for gate in detail.gates),
        "gates: " + "; ".join(f"{g.gate} {g.verdict} {g.reason}" for g in detail.gates),
    )
    lines = [f"gate {gate.gate}: {gate.verdict}, {gate.reason}" for gate in verdicts.values()]
    reason = _harm(stage)
    champion = {gate.partition("/")[2] for gate in verdicts} & AGAINST_THE_CHAMPION
    require(
        champion == AGAINST_THE_CHAMPION,
        f"no gate compared version 2 with the champion: {sorted(verdicts)}",
    )
    return "\n".join(
        [
            f"drift {drifted}",
            f"harm: {reason}",
            *lines,
            f"drift {drifted}; version 2 passed {len(lines)} gates against the champion",
        ]
    )


def _harm(stage: Stage) -> str:
    """Why the control plane retrains, in its own words: the labels must have confirmed harm."""
    for entry in stage.client.audit():
        if entry.action == "retrain.decided" and entry.detail.get("action") == "retrain":
            reason = str(entry.detail.get("reason", ""))
            require("accuracy in the field is at most" in reason, f"retraining began: {reason}")
            return reason
    raise DidNotHold("the audit log does not say why retraining began")


def _accuracy(stage: Stage) -> float:
    """Share of right answers to rotated images that took no part in the retraining.

    Their upright originals did: every image of the example is in its base data.
    """
    wanted = slice(FIELD_IMAGES, FIELD_IMAGES + JUDGED_IMAGES)
    devices = list(stage.devices.values())
    rotated = rotate(stage.images[wanted], ROTATION_DEGREES)
    right = sum(
        devices[n % len(devices)].predict(image).label == label
        for n, (image, label) in enumerate(zip(rotated, stage.labels[wanted], strict=True))
    )
    return float(right / len(rotated))


def roll_out(stage: Stage) -> str:
    before = _accuracy(stage)
    stage.client.approve(MODEL, 2, "gates passed")
    stage.client.publish(MODEL, 2)
    rollout = stage.client.start_rollout(
        RolloutIn(
            model=MODEL, version=2, probation_s=2,
            waves=[WaveIn(count=1, soak_s=2), WaveIn(percent=100, soak_s=2)],
        )
    )  # fmt: skip

    def ended() -> RolloutDetail | None:
        detail = stage.client.rollout(rollout.id)
        stage.detail(", ".join(f"wave {w['index'] + 1} {w['state']}" for w in detail.waves))
        return detail if detail.state in ("COMPLETED", "HALTED", "CANCELLED", "PAUSED") else None

    detail = wait_for("the rollout ends", ended, 150)
    require(detail.state == "COMPLETED", f"rollout {detail.state}: {detail.reason}")
    require(len(detail.waves) == 2, f"expected two waves, found {len(detail.waves)}")
    after = _accuracy(stage)
    require(
        after > before + 0.02, f"accuracy on rotated inputs {before:.3f} → {after:.3f}: no better"
    )
    waves = "; ".join(f"wave {w['index'] + 1}: {w['healthy']}/{w['devices']}" for w in detail.waves)
    return (
        f"{waves} healthy\naccuracy on {JUDGED_IMAGES} images rotated by "
        f"{ROTATION_DEGREES:.0f}°: {before:.3f} → {after:.3f}"
    )


def open_console(stage: Stage) -> str:
    page = httpx.get(stage.console_url(), follow_redirects=True, timeout=30)
    require(page.status_code == 200, f"the console answers {page.status_code}")
    overview = stage.client.overview()
    require(overview.online == len(FLEET), f"{overview.online} devices are online")
    try:
        Client(f"http://127.0.0.1:{stage.api_port}", "wrong").overview()
    except ApiError:
        pass
    else:
        raise DidNotHold("the API answers to a wrong token")
    weights = [device.weigh() for device in stage.devices.values()]
    pss_mib = max(pss for pss, _ in weights)
    idle_percent = max(percent for _, percent in weights)
    return (
        f"{overview.devices} devices, {overview.samples} samples, "
        f"{stage.client.audit()[0].id} audit entries; "
        f"an agent holds {pss_mib:.0f} MiB and idles at {idle_percent:.1f} % CPU"
    )
