"""An OpenSSF model signature beside a bundle, for people who verify models by that standard.

Devices do not look at it: what they install is decided by the two repositories.  The signature is
by a key of its own (NIST P-256, an encrypted key file), without network or transparency log, and
`model_signing verify key --signature SIG --public_key KEY.pub BUNDLE` accepts it.  Needs the extra
`skerry[openssf]`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from securesystemslib.signer import KEY_TYPE_ECDSA

from cloud.errors import UserError
from cloud.signing.errors import BadKeyFile, SignerUnavailable, SigningError
from cloud.signing.key_files import read_key
from cloud.signing.signers import why


def sign_bundle(bundle: Path, key: Path, passphrase: str, signature: Path) -> None:
    """Sign a bundle: its file, or the directory that it was unpacked to.

    Args:
        key: encrypted key file on NIST P-256, P-384 or P-521.
        signature: written whole or not at all; must not lie in the directory that is signed.

    Raises:
        SignerUnavailable: the package model-signing is not here.
        BadKeyFile: the key is of another kind.
        WrongPassphrase: the key file does not open.
        UserError: there is no such bundle, or the signature would be part of it.
    """
    try:
        from model_signing import signing
    except ImportError as error:
        raise SignerUnavailable(
            "OpenSSF signatures need a package that is not here: pip install 'skerry[openssf]'"
        ) from error
    if not bundle.exists():
        raise UserError(f"{bundle}: there is no such bundle")
    if bundle.is_dir() and signature.resolve().is_relative_to(bundle.resolve()):
        raise UserError(f"{signature} would lie in {bundle} and be part of what is signed")
    if read_key(key, passphrase.encode()).public_key.keytype != KEY_TYPE_ECDSA:
        raise BadKeyFile(f"{key} is not on an elliptic curve; 'skerry keys new --p256' makes one")
    unfinished = signature.with_name(f".{signature.name}.{os.getpid()}.tmp")
    try:
        # model-signing 1.1 hands the password on as it is, to what takes bytes alone
        password: Any = passphrase.encode()
        config = signing.Config().use_elliptic_key_signer(private_key=key, password=password)
        config.sign(bundle, unfinished)
        unfinished.replace(signature)
    except (ValueError, TypeError) as error:
        raise SigningError(f"{bundle} cannot be signed: {why(error)}") from error
    finally:
        unfinished.unlink(missing_ok=True)
