"""Keys that are no files of the key directory: tokens, key services, the inventory."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import SSlibKey

from cloud.signing import (
    BadKeyFile,
    ImageRepository,
    KeysMissing,
    KeyStore,
    SignerUnavailable,
    WrongPassphrase,
    init_keys,
)
from cloud.signing.key_files import read_key, read_public_key, write_key, write_public_key
from cloud.signing.signers import Inventory, InventoryKey, import_key, open_signer, secrets_from

SOFTHSM = next(
    (path for path in (Path("/usr/lib/softhsm/libsofthsm2.so"),
                       Path("/usr/lib64/softhsm/libsofthsm.so"),
                       Path("/opt/homebrew/lib/softhsm/libsofthsm2.so")) if path.exists()),
    None,
)  # fmt: skip
needs_token = pytest.mark.skipif(
    SOFTHSM is None
    or shutil.which("softhsm2-util") is None
    or importlib.util.find_spec("pkcs11") is None,
    reason="needs Debian's softhsm2 and the package python-pkcs11",
)

GENERATE = """
import sys, pkcs11
from pkcs11 import KeyType, Mechanism
from pkcs11.util.ec import encode_named_curve_parameters
token = pkcs11.lib(sys.argv[1]).get_token(token_label="release")
with token.open(rw=True, user_pin="1234") as session:
    for number in (2, 3):
        parameters = session.create_domain_parameters(
            KeyType.EC, {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")},
            local=True)
        parameters.generate_keypair(id=bytes([number]), label=f"key {number}", store=True)
"""


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A PKCS#11 token with two keys; returns the URI of the first."""
    (tmp_path / "tokens").mkdir()
    config = tmp_path / "softhsm2.conf"
    config.write_text(f"directories.tokendir = {tmp_path / 'tokens'}\nlog.level = ERROR\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(config))
    monkeypatch.setenv("PYKCS11LIB", str(SOFTHSM))
    monkeypatch.setenv("SKERRY_HSM_PIN", "1234")
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", "release", "--pin", "1234",
         "--so-pin", "5678"], check=True, capture_output=True,
    )  # fmt: skip
    subprocess.run([sys.executable, "-c", GENERATE, str(SOFTHSM)], check=True)
    return "hsm:2?label=release"


def in_its_own_process(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """PKCS#11 libraries are opened once a process and keep their configuration."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ),
    )  # fmt: skip


ROTATE_TO_TOKEN = """
import sys
from pathlib import Path
from cloud.signing import ImageRepository, KeyStore
from cloud.signing.signers import InventoryKey, import_key, secrets_from
directory, role, *uris = sys.argv[1:]
keys = KeyStore(Path(directory) / "keys", "passphrase")
image = ImageRepository(Path(directory) / "image", keys)
imported = [import_key(uri, secrets_from("passphrase")) for uri in uris]
keys.inventory.add(InventoryKey.of("image", role, uri, key) for uri, key in imported)
out = image.root().roles[role].keyids[:len(uris)]
assert image.rotate(role, out, [key for _, key in imported])
for path in keys.directory.glob(f"image-{role}-*.pem"):
    path.unlink()
"""

PUBLISH = """
import sys
from pathlib import Path
from cloud.signing import ImageRepository, KeyStore
from edge_agent.wire.manifest import Encoding, ReleaseInfo, target_path
directory = Path(sys.argv[1])
image = ImageRepository(directory / "image", KeyStore(directory / "keys", "passphrase"))
form = Encoding(algo="raw", sha256="a" * 64, length=3, chunks_sha256="a" * 64)
info = ReleaseInfo(model="m", version=1, profile="p", counter=1, encodings=(form,))
print(image.publish(target_path("m", "p", 1), 3, "a" * 64, info))
"""


@needs_token
@pytest.mark.parametrize(("role", "keys"), [("timestamp", (2,)), ("targets", (2, 3))])
def test_a_token_signs_what_its_role_signs(plane, token, role, keys) -> None:
    uris = [f"hsm:{number}?label=release" for number in keys]
    done = in_its_own_process(ROTATE_TO_TOKEN, plane.directory, role, *uris)
    assert done.returncode == 0, done.stderr
    done = in_its_own_process(PUBLISH, plane.directory)
    assert done.stdout.strip() == "True", done.stderr
    held = plane.image.root().roles[role].keyids
    name = "models/m/p" if role == "targets" else role
    signed = (
        plane.image.published(name)
        if role == "targets"
        else type(plane.image.published("root")).from_file(
            str(plane.image.directory / "timestamp.json")
        )
    )
    tokens = [each.keyid for each in plane.keys.inventory.listed()]
    assert set(tokens) <= set(held) and set(tokens) == set(signed.signatures)


SERVICE = """
import os
from pathlib import Path
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils


class Service:
    def _key(self, name):
        return serialization.load_pem_private_key(
            (Path(os.environ["KEY_SERVICE"]) / name.replace("/", "_")).read_bytes(), None
        )

    def get_public_key(self, *, KeyId):
        public = self._key(KeyId).public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return {"PublicKey": public, "SigningAlgorithms": ["ECDSA_SHA_256"]}

    def sign(self, *, KeyId, Message, MessageType, SigningAlgorithm):
        if "KEY_SERVICE_REFUSES" in os.environ:
            raise ClientError("AccessDeniedException: not yours to sign with")
        assert (MessageType, SigningAlgorithm) == ("DIGEST", "ECDSA_SHA_256")
        digest = ec.ECDSA(utils.Prehashed(hashes.SHA256()))
        return {"Signature": self._key(KeyId).sign(Message, digest)}


def client(service):
    assert service == "kms"
    return Service()
"""


@pytest.fixture
def key_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A key service with two keys behind securesystemslib's own signer; returns their URIs.

    Only its client library is a stand-in, which keeps the keys in files: no cloud is reached.
    """
    packages, keys = tmp_path / "packages", tmp_path / "service"
    (packages / "boto3").mkdir(parents=True)
    (packages / "boto3" / "__init__.py").write_text(SERVICE)
    (packages / "botocore").mkdir()
    (packages / "botocore" / "__init__.py").touch()
    (packages / "botocore" / "exceptions.py").write_text(
        "class BotoCoreError(Exception): ...\nclass ClientError(Exception): ...\n"
    )
    keys.mkdir()
    for name in ("alias_one", "alias_two"):
        (keys / name).write_bytes(
            ec.generate_private_key(ec.SECP256R1()).private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )  # fmt: skip
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(packages), before))))
    monkeypatch.setenv("KEY_SERVICE", str(keys))
    return ["awskms:alias/one", "awskms:alias/two"]


@pytest.mark.parametrize(("role", "keys"), [("timestamp", 1), ("targets", 2)])
def test_a_key_service_signs_what_its_role_signs(plane, key_service, role, keys) -> None:
    done = in_its_own_process(ROTATE_TO_TOKEN, plane.directory, role, *key_service[:keys])
    assert done.returncode == 0, done.stderr
    done = in_its_own_process(PUBLISH, plane.directory)
    assert done.stdout.strip() == "True", done.stderr
    listed = plane.keys.inventory.listed()
    assert [each.uri for each in listed] == key_service[:keys]
    signed = (
        plane.image.published("models/m/p")
        if role == "targets"
        else type(plane.image.published("root")).from_file(
            str(plane.image.directory / "timestamp.json")
        )
    )
    assert {each.keyid for each in listed} == set(signed.signatures)
    for each in listed:
        each.key.verify_signature(signed.signatures[each.keyid], signed.signed_bytes)


def test_a_key_service_that_refuses_is_said_in_one_line(plane, key_service, monkeypatch) -> None:
    done = in_its_own_process(ROTATE_TO_TOKEN, plane.directory, "timestamp", key_service[0])
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("KEY_SERVICE_REFUSES", "1")
    done = in_its_own_process(PUBLISH, plane.directory)
    assert done.returncode != 0
    assert "not yours to sign with" in done.stderr.splitlines()[-1]


@needs_token
@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [("SKERRY_HSM_PIN", "", "set SKERRY_HSM_PIN"), ("SKERRY_HSM_PIN", "9999", "[Pp]in"),
     ("PYKCS11LIB", "", "PYKCS11LIB")],
)  # fmt: skip
def test_a_token_that_cannot_be_used_is_said_in_one_line(
    plane, token, monkeypatch, variable, value, message
) -> None:
    assert in_its_own_process(ROTATE_TO_TOKEN, plane.directory, "timestamp", token).returncode == 0
    monkeypatch.setenv(variable, value)
    done = in_its_own_process(PUBLISH, plane.directory)
    (line,) = [
        line for line in done.stderr.splitlines() if "KeysMissing" in line and "here" not in line
    ][-1:]
    assert "image timestamp: 0 of 1" in line
    import re

    assert re.search(message, line), line


@pytest.mark.parametrize(
    ("uri", "package", "module"),
    [
        ("awskms:alias/release", "boto3", "boto3"),
        ("gcpkms:projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1",
         "google-cloud-kms", "google.cloud.kms"),
        ("azurekms://vault.vault.azure.net/keys/release", "azure-identity", "azure.identity"),
    ],
)  # fmt: skip
def test_a_key_service_without_its_package_names_the_package(uri, package, module) -> None:
    try:
        if importlib.util.find_spec(module) is not None:
            pytest.skip(f"{module} is installed")
    except ModuleNotFoundError:
        pass
    with pytest.raises(SignerUnavailable, match=f"pip install .*{package}") as error:
        import_key(uri, secrets_from("passphrase"))
    assert "\n" not in str(error.value)


def test_a_role_goes_on_with_its_files_while_a_listed_key_cannot_be_used(plane, tmp_path) -> None:
    missing = write_key(tmp_path / "missing.pem", b"passphrase")
    listed = InventoryKey.of("image", "targets", "awskms:alias/release", missing)
    plane.keys.inventory.add([listed])
    out = plane.image.root().roles["targets"].keyids[0]
    assert plane.image.rotate("targets", [out], [missing])
    assert plane.publish(1, stage=False)
    plane.take_away("image-targets-*.pem")
    with pytest.raises(KeysMissing, match="boto3"):
        plane.publish(2, stage=False)


def test_a_listed_key_file_elsewhere_signs(plane, tmp_path) -> None:
    key = write_key(tmp_path / "elsewhere.pem", b"passphrase")
    uri = f"file:{tmp_path / 'elsewhere.pem'}"
    plane.keys.inventory.add([InventoryKey.of("image", "timestamp", uri, key)])
    old = plane.image.root().roles["timestamp"].keyids
    assert plane.image.rotate("timestamp", list(old), [key])
    plane.take_away("image-timestamp-*.pem")
    assert plane.publish(1)


def test_a_first_root_takes_listed_keys_in_place_of_files(tmp_path) -> None:
    given = []
    for number in (1, 2):
        key = write_key(tmp_path / f"hand-{number}.pem", b"passphrase")
        uri = f"file:{tmp_path / f'hand-{number}.pem'}"
        given.append(InventoryKey.of("image", "targets", uri, key))
    keys = init_keys(tmp_path / "keys", "passphrase", elsewhere=given)
    assert len(list((tmp_path / "keys").glob("image-targets-*.pem"))) == 1
    image = ImageRepository(tmp_path / "image", KeyStore(tmp_path / "keys", "passphrase"))
    held = image.root().roles["targets"].keyids
    assert len(held) == 3 and {each.keyid for each in given} <= set(held)
    with pytest.raises(BadKeyFile, match="keys rotate"):
        init_keys(keys.directory, "passphrase", elsewhere=given)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "no key inventory"),
        ('{"keys": [{"repository": "image"}]}', "no key inventory"),
        ('{"keys": [], "more": 1}', "no key inventory"),
    ],
)
def test_a_damaged_inventory_is_named(tmp_path, content, message) -> None:
    (tmp_path / "keys.json").write_text(content)
    with pytest.raises(BadKeyFile, match=message) as error:
        Inventory(tmp_path / "keys.json").listed()
    assert "keys.json" in str(error.value)


def test_a_file_uri_with_another_key_than_the_metadatas_is_refused(tmp_path) -> None:
    write_key(tmp_path / "a.pem", b"passphrase")
    other = write_key(tmp_path / "b.pem", b"passphrase")
    with pytest.raises(BadKeyFile, match="another key"):
        open_signer(f"file:{tmp_path / 'a.pem'}", other, secrets_from("passphrase"))
    with pytest.raises(WrongPassphrase):
        open_signer(f"file:{tmp_path / 'b.pem'}", other, secrets_from("wrong"))


@pytest.mark.parametrize("uri", ["gpg:abc", "nonsense", "", "file2:/x"])
def test_an_unknown_scheme_names_the_known_ones(tmp_path, uri) -> None:
    key = write_key(tmp_path / "a.pem", b"passphrase")
    with pytest.raises(SignerUnavailable, match="file, hsm, awskms, gcpkms, azurekms"):
        open_signer(uri, key, secrets_from("passphrase"))


# ── key files ────────────────────────────────────────────────────────────────────────────────────


def test_a_key_file_never_replaces_another_and_has_a_public_half(tmp_path) -> None:
    key = write_key(tmp_path / "a.pem", b"passphrase")
    assert (tmp_path / "a.pem").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        write_key(tmp_path / "a.pem", b"passphrase")
    with pytest.raises(BadKeyFile, match="passphrase"):
        write_key(tmp_path / "b.pem", b"")
    write_public_key(tmp_path / "a.pub", key)
    assert read_public_key(tmp_path / "a.pub") == key
    assert isinstance(key, SSlibKey)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 100, b"x" * 100_000])
def test_what_is_no_key_file_is_named(tmp_path, content) -> None:
    (tmp_path / "a.pem").write_bytes(content)
    for read in (read_public_key, lambda path: read_key(path, b"passphrase")):
        with pytest.raises(BadKeyFile, match=r"a\.pem"):
            read(tmp_path / "a.pem")
