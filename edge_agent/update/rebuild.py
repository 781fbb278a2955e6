"""What is installed, read from links and slots when the database that knew it is lost.

Which release brought a version, and whether it had passed its probation, is not written there.  So
what `current` points at counts as committed, and as older than every release: the control plane's
assignment then tries what serves once more, without a download, and the counter of its release is
known again.  Roll-back protection is in the marks and does not need it.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Final

from edge_agent.update.errors import BadBundle
from edge_agent.update.reading import require_intact
from edge_agent.update.records import Installed, Role
from edge_agent.wire.ids import is_slug
from edge_agent.wire.manifest import Manifest, target_path

log = logging.getLogger("skerry.update")

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_ROLES: Final[tuple[Role, Role]] = ("current", "previous")
_COUNTER: Final = 0
"""Below every release's."""


def installed_on_disk(root: Path) -> list[tuple[Role, Installed]]:
    """Versions that were current, and those that a revert could go back to, of a slot store.

    A slot counts when every file has the digest that its manifest lists; all are read.
    """
    found: list[tuple[Role, Installed]] = []
    for directory in sorted((root / "models").glob("*")):
        link = directory / "current"
        if not is_slug(directory.name) or not link.is_symlink():
            continue  # nothing was switched to: a staged slot waits for its self-test
        whole = _whole(directory)
        # the oldest, for a newer one may be staged and never tried
        oldest_first = sorted(whole, key=lambda sha256: whole[sha256].version)
        oldest_first.sort(key=lambda sha256: sha256 != link.readlink().name)
        for role, sha256 in zip(_ROLES, oldest_first, strict=False):
            found.append((role, _installed(directory / "slots" / sha256, whole[sha256])))
        log.warning(
            "update.rebuilt model=%s versions=%s",
            directory.name,
            ", ".join(str(whole[sha256].version) for sha256 in oldest_first[:2]) or "none",
        )
    return found


def _whole(directory: Path) -> dict[str, Manifest]:
    """Manifests of a model's intact slots, by digest of the bundle."""
    manifests: dict[str, Manifest] = {}
    for slot in (directory / "slots").glob("*"):
        if not _DIGEST.fullmatch(slot.name):
            continue
        try:
            manifest = require_intact(slot)
            if manifest.model != directory.name:
                raise BadBundle(f"the manifest is of {manifest.model}")
        except (BadBundle, OSError) as error:
            log.warning(
                "update.slot_damaged model=%s sha256=%s cause=%s", directory.name, slot.name, error
            )
        else:
            manifests[slot.name] = manifest
    return manifests


def _installed(slot: Path, manifest: Manifest) -> Installed:
    return Installed(
        model=manifest.model,
        path=slot,
        sha256=slot.name,
        target=target_path(manifest.model, manifest.profile, _COUNTER),
        version=manifest.version,
        counter=_COUNTER,
        variant=manifest.variant,
        generation=0,
        rollout=None,
        probation_s=10.0,
        pending=False,
        tries=0,
    )
