"""Errors of the update room.

UpdateError
├── Refused               the release must not run here; final for its assignment
│   ├── UntrustedMetadata     a signature, version or hash of the metadata is wrong
│   ├── RolledBack            an older release or older metadata than was already accepted
│   ├── WrongProfile          made for another hardware profile or model
│   ├── WrongDevice           the director's metadata is another device's
│   ├── Disagreement          director and image repository do not say the same
│   └── BadBundle             the bundle breaks its own manifest
├── Failed                it could have run, but did not get that far; final as well
│   ├── TransferFailed        chunks corrupt, missing or denied beyond the retry cap
│   ├── SelftestFailed        does not load, or answers golden inputs wrongly
│   └── OverQuota             there is no room for it within `update_quota_mib`
└── NotYet                try again later
    ├── Unreachable           no answer from the control plane
    ├── MalformedTwin         the desired twin cannot be read; the one before it stands
    ├── BadMedium             what was given to install from is no sound export for this device
    ├── TransferStalled       chunks come too slowly; what came is kept
    ├── ExpiredMetadata       the signed metadata needs renewal; installs wait, serving goes on
    ├── NotAssigned           the director does not (yet) name this release
    ├── IncompleteGroup       twin and director do not (yet) name the same group of releases
    ├── Paused                the operator of the device paused updates
    ├── OutsideWindow         ready; the switch waits for a maintenance window
    ├── OnProbation           ready; the group that its model belongs to is being judged
    └── Interrupted           superseded, cancelled or stopping

Every error has a `reason`: the slug that reports carry.
"""

from __future__ import annotations


class UpdateError(Exception):
    """An update did not happen; `reason` says why in one slug."""

    reason = "failed"

    def __init__(self, detail: str, reason: str | None = None) -> None:
        super().__init__(detail)
        if reason is not None:
            self.reason = reason


class Refused(UpdateError):
    """The release must not run here."""

    reason = "refused"


class UntrustedMetadata(Refused):
    """A signature, version or hash of the metadata is wrong."""

    reason = "untrusted_metadata"


class RolledBack(Refused):
    """Older than what was already accepted."""

    reason = "older_release"


class WrongProfile(Refused):
    """Made for another hardware profile or model."""

    reason = "wrong_profile"


class WrongDevice(Refused):
    """The director's metadata is another device's."""

    reason = "wrong_device"


class Disagreement(Refused):
    """Director and image repository do not say the same."""

    reason = "repositories_disagree"


class BadBundle(Refused):
    """The bundle breaks its own manifest."""

    reason = "bad_bundle"


class Failed(UpdateError):
    """The release could have run, but did not get that far."""


class TransferFailed(Failed):
    """Chunks corrupt, missing or denied beyond the retry cap; see `reason`."""

    reason = "transfer_failed"


class SelftestFailed(Failed):
    """Does not load, or answers golden inputs wrongly."""

    reason = "selftest_failed"


class OverQuota(Failed):
    """There is no room for it within the quota."""

    reason = "over_quota"


class NotYet(UpdateError):
    """Try again later."""


class Unreachable(NotYet):
    """No answer from the control plane."""

    reason = "unreachable"


class MalformedTwin(NotYet):
    """The desired twin cannot be read; the one before it stands."""

    reason = "malformed_twin"


class BadMedium(NotYet):
    """What was given to install from is no sound export for this device; another may be."""

    reason = "bad_medium"


class TransferStalled(NotYet):
    """Chunks come too slowly; what came is kept.

    Attributes:
        advanced: whether enough came before it stalled: on the average of the whole try as fast as
            is asked for, or anything at all where no rate is.
    """

    reason = "transfer_stalled"

    def __init__(self, detail: str, *, advanced: bool = False) -> None:
        super().__init__(detail)
        self.advanced = advanced


class ExpiredMetadata(NotYet):
    """The signed metadata needs renewal."""

    reason = "expired_metadata"


class NotAssigned(NotYet):
    """The director does not (yet) name this release."""

    reason = "not_assigned"


class IncompleteGroup(NotYet):
    """Twin and director do not (yet) name the same group of releases."""

    reason = "group_incomplete"


class Paused(NotYet):
    """The operator of the device paused updates."""

    reason = "paused"


class OutsideWindow(NotYet):
    """Ready; the switch waits for a maintenance window."""

    reason = "outside_window"


class OnProbation(NotYet):
    """Ready; the group that its model belongs to is being judged."""

    reason = "on_probation"


class Interrupted(NotYet):
    """Superseded, cancelled or stopping."""

    reason = "interrupted"
