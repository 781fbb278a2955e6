"""Signed metadata of releases: two TUF repositories and the keys behind them.

The *image repository* says which bundles exist; it needs two of three offline keys.  The
*director* says which of them one device is to run; its keys are online.  A device installs only
what both name (Uptane's full verification), so neither set of keys alone can ship anything.

Rules:
    * A metadata file, once written under its version, never changes; `timestamp.json` goes last.
    * Every write is atomic, synced, and made under a lock that holds between processes.
    * Nothing here decides what is released or to whom.
"""

from cloud.signing.director import Director, DirectorTarget, LabAssignment
from cloud.signing.errors import (
    BadKeyFile,
    BadRequest,
    BadRotation,
    ConflictingTarget,
    DamagedMetadata,
    KeysMissing,
    SignerUnavailable,
    SigningError,
    StaleRequest,
    WrongPassphrase,
)
from cloud.signing.image import ImageRepository
from cloud.signing.keys import KeyStore, init_keys

__all__ = [
    "BadKeyFile",
    "BadRequest",
    "BadRotation",
    "ConflictingTarget",
    "DamagedMetadata",
    "Director",
    "DirectorTarget",
    "ImageRepository",
    "KeyStore",
    "KeysMissing",
    "LabAssignment",
    "SignerUnavailable",
    "SigningError",
    "StaleRequest",
    "WrongPassphrase",
    "init_keys",
]
