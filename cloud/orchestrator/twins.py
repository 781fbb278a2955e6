"""Desired twins: writing them with their outgoing message, and what the director signs for them."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.orm import Session

from cloud.db.tables import Device, Outbox, Release
from cloud.publish import director_target
from cloud.signing import DirectorTarget
from edge_agent.wire import topics
from edge_agent.wire.messages import Desired, DesiredModel, DesiredTrial, TrialMode


def desired_of(device: Device) -> Desired:
    """The twin as last set; empty for a device that was never assigned anything."""
    return Desired.model_validate({"version": device.desired_version, **(device.desired or {})})


def set_model(
    session: Session,
    device: Device,
    model: str,
    release: Release | None,
    *,
    rollout: str | None,
    probation_s: float,
    now: float,
) -> int:
    """`set_models` of one model, which stands alone."""
    return set_models(
        session, device, {model: release}, rollout=rollout, probation_s=probation_s, now=now
    )


def set_models(
    session: Session,
    device: Device,
    releases: Mapping[str, Release | None],
    *,
    probation_s: float,
    now: float,
    rollout: str | None = None,
    together: bool = False,
) -> int:
    """Name releases (None: nothing) as the desired ones of their models, and queue the twin.

    What is tried of these models is tried no more.

    The twin's version serves as the generation: it grows with every change of the device's twin,
    so a device that confirms a version has seen every assignment up to it.

    Args:
        together: the device installs them all or none.  A later assignment of one of the models
            takes it out of the group.

    Returns:
        The generation, the same for all.
    """
    desired = desired_of(device)
    generation = max(device.desired_version, desired.version) + 1
    models = dict(desired.models)
    for model, release in releases.items():
        models.pop(model, None)
        if release is not None:
            models[model] = DesiredModel(
                target=release.target,
                version=release.version,
                counter=release.counter,
                generation=generation,
                rollout=rollout,
                probation_s=probation_s,
                group=f"g-{generation}" if together else None,
            )
    trials = {model: trial for model, trial in desired.trials.items() if model not in releases}
    _queue(session, device, Desired(version=generation, models=models, trials=trials), now)
    return generation


def set_trial(
    session: Session,
    device: Device,
    model: str,
    release: Release | None,
    *,
    rollout: str | None = None,
    probation_s: float = 0.0,
    mode: TrialMode = "ab",
    share: float = 0.0,
    now: float,
) -> int:
    """Have `release` (None: nothing) tried beside what is desired of `model`, and queue the twin.

    Returns:
        The generation.
    """
    desired = desired_of(device)
    generation = max(device.desired_version, desired.version) + 1
    trials = {name: trial for name, trial in desired.trials.items() if name != model}
    if release is not None:
        trials[model] = DesiredTrial(
            target=release.target,
            version=release.version,
            counter=release.counter,
            generation=generation,
            rollout=rollout,
            probation_s=probation_s,
            mode=mode,
            share=share,
        )
    _queue(session, device, Desired(version=generation, models=desired.models, trials=trials), now)
    return generation


def change_trial(
    session: Session, device: Device, model: str, rollout: str, share: float, now: float
) -> bool:
    """Another share of the trial that `rollout` put there, under its generation: nothing is
    downloaded again.  Whether there is such a trial."""
    desired = desired_of(device)
    trial = desired.trials.get(model)
    if trial is None or trial.rollout != rollout:
        return False
    trials = {**desired.trials, model: trial.model_copy(update={"share": share})}
    version = max(device.desired_version, desired.version) + 1
    _queue(session, device, Desired(version=version, models=desired.models, trials=trials), now)
    return True


def _queue(session: Session, device: Device, twin: Desired, now: float) -> None:
    device.desired = twin.model_dump(mode="json")
    device.desired_version = twin.version
    session.add(
        Outbox(
            topic=topics.of(device.id, "desired", device.gateway),
            payload=twin.encode(),
            retain=True,
            created_at=now,
            published_at=None,
        )
    )


def director_targets(session: Session, device: Device) -> list[DirectorTarget]:
    """The set that makes the device's twin installable."""
    desired = desired_of(device)
    targets = []
    for wanted in (*desired.models.values(), *desired.trials.values()):
        release = session.get(Release, wanted.target)
        if release is not None:
            trial = wanted if isinstance(wanted, DesiredTrial) else None
            targets.append(
                director_target(
                    release,
                    generation=wanted.generation,
                    probation_s=wanted.probation_s,
                    group=wanted.group,
                    mode=None if trial is None else trial.mode,
                    share=0.0 if trial is None else trial.share,
                )
            )
    return targets
