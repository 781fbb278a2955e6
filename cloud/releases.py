"""From an approved version to signed releases: one for each of its profiles."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from cloud import registry
from cloud.blobs import Blobs
from cloud.db.tables import ModelVersion, Release, Variant
from cloud.errors import Conflict, NotFound, UserError
from cloud.publish import Forms, bases_of, forms_of, publish_release
from cloud.registry import audit
from cloud.signing import ImageRepository

log = logging.getLogger("skerry.releases")

PUBLISHABLE = frozenset({"approved", "published", "champion"})


def encode_version(
    session: Session,
    blobs: Blobs,
    model: str,
    version: int,
    *,
    variant_ids: Mapping[str, int],
    allow_predicted: bool = False,
) -> dict[str, Forms]:
    """What `publish_version` would have to encode, by bundle; to be called before its transaction.

    Args:
        session: only read.

    Raises:
        As `publish_version`.
    """
    chosen = _publishable(session, model, version, variant_ids, allow_predicted)
    return {
        bundle: forms_of(session, blobs, bundle, bases_of(session, model, variant.profile))
        for variant, bundle in chosen
    }


def publish_version(
    session: Session,
    blobs: Blobs,
    image_repository: ImageRepository,
    model: str,
    version: int,
    *,
    variant_ids: Mapping[str, int],
    actor: str,
    forms: Mapping[str, Forms],
    allow_predicted: bool = False,
) -> list[Release]:
    """Publish `version`; the first version of a model ever published becomes its champion.

    Where offline keys must sign and are not at hand, its releases are staged: the version stays as
    it is until `settle_staged` finds them signed.

    Args:
        variant_ids: profile → variant to publish instead of the selected one.
        forms: from `encode_version`.
        allow_predicted: publish what was never measured on its profile too; the audit shows it.

    Raises:
        NotFound: no such version or variant.
        Conflict: the version is not approved, nothing of it can be published, or a variant was
            never measured on its profile and `allow_predicted` is not set.
        UserError: a named variant belongs to another version or profile.
    """
    releases = []
    for variant, bundle in _publishable(session, model, version, variant_ids, allow_predicted):
        release = publish_release(
            session,
            blobs,
            image_repository,
            model,
            version,
            variant.profile,
            bundle,
            forms.get(bundle),
            stage=True,
        )
        audit.append(
            session,
            actor,
            "release.staged" if release.awaiting else "release.published",
            release.target,
            {
                "variant": variant.name,
                "sha256": release.bundle_sha,
                "version": version,
                # said only where somebody allowed it
                **({"predicted": True} if variant.predicted else {}),
            },
        )
        state = "staged" if release.awaiting else "published"
        log.info("release.%s target=%s variant=%s", state, release.target, variant.name)
        releases.append(release)
    if not any(release.awaiting for release in releases):
        note_published(session, model, version, actor)
    return releases


def settle_staged(session: Session, image_repository: ImageRepository, actor: str) -> list[Release]:
    """Take over from the repository which staged releases were signed since, and which given up.

    A version becomes published with the last of its releases.  Idempotent: called after a
    ceremony, and by the orchestrator, whatever came in between.

    Returns:
        The releases that devices can have now.
    """
    waiting = session.scalars(
        select(Release).where(Release.awaiting.is_(True)).order_by(Release.created_at)
    ).all()
    signed = []
    for release in waiting:
        state = image_repository.state_of(release.target)
        if state == "published":
            release.awaiting = False
            signed.append(release)
            audit.append(
                session,
                actor,
                "release.published",
                release.target,
                {"sha256": release.bundle_sha, "version": release.version},
            )
            log.info("release.signed target=%s", release.target)
        elif state == "unknown":
            audit.append(session, actor, "release.discarded", release.target, {})
            log.info("release.discarded target=%s", release.target)
            session.delete(release)
    session.flush()
    for model, version in sorted({(release.model, release.version) for release in signed}):
        others = select(Release.target).where(
            Release.model == model, Release.version == version, Release.awaiting.is_(True)
        )
        if session.scalar(others.limit(1)) is None:
            note_published(session, model, version, actor)
    return signed


def note_published(session: Session, model: str, version: int, actor: str) -> None:
    """Move a version whose releases devices can have; a model's first one becomes its champion."""
    row = session.get(ModelVersion, (model, version))
    if row is None or row.state not in PUBLISHABLE:
        return  # retired or rejected while its releases waited
    if row.state == "approved":
        registry.transition(session, model, version, "published", actor, "published")
    if registry.champion(session, model) is None:
        registry.transition(session, model, version, "champion", actor, "first published version")


def _publishable(
    session: Session,
    model: str,
    version: int,
    variant_ids: Mapping[str, int],
    allow_predicted: bool,
) -> list[tuple[Variant, str]]:
    """The variants to publish, each with its bundle."""
    row = session.get(ModelVersion, (model, version))
    if row is None:
        raise NotFound(f"no version {version} of model {model!r}")
    if row.state not in PUBLISHABLE:
        raise Conflict(
            f"{model}:{version} is {row.state}; approve it first "
            f"('skerry models approve {model}:{version}')"
        )
    chosen = []
    variants = _choose(session, model, version, variant_ids)
    if not allow_predicted and (foretold := [each for each in variants if each.predicted]):
        named = ", ".join(f"{each.name} on {each.profile}" for each in foretold)
        raise Conflict(
            f"{model}:{version}: {named} was never measured on its profile, its latency is "
            "predicted; measure it on a device of the profile "
            "('skerry optimize --on device:ID'), or publish with --allow-predicted"
        )
    for variant in variants:
        if variant.bundle_sha is None:
            raise Conflict(f"{variant.name} on {variant.profile} has no bundle")
        chosen.append((variant, variant.bundle_sha))
    return chosen


def _choose(
    session: Session, model: str, version: int, variant_ids: Mapping[str, int]
) -> list[Variant]:
    selected = session.scalars(
        select(Variant).where(
            Variant.model == model, Variant.version == version, Variant.selected.is_(True)
        )
    )
    chosen = {variant.profile: variant for variant in selected} if not variant_ids else {}
    for profile, variant_id in variant_ids.items():
        variant = session.get(Variant, variant_id)
        if variant is None:
            raise NotFound(f"no variant {variant_id}")
        if (variant.model, variant.version, variant.profile) != (model, version, profile):
            raise UserError(f"variant {variant_id} is not one of {model}:{version} on {profile}")
        chosen[profile] = variant
    if not chosen:
        raise Conflict(f"{model}:{version} has no selected variant to publish")
    return list(chosen.values())
