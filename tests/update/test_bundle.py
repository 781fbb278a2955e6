"""Hostile bundles and encodings: bounded, refused, and nothing left outside the slot."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import zstandard

from edge_agent.update.bundle import unpack
from edge_agent.update.decode import choose, decode
from edge_agent.update.errors import BadBundle
from edge_agent.update.files import Files
from edge_agent.wire.manifest import BundleFile, Encoding, Manifest, ModelSpec, StepSpec

SHA = "0" * 64


def manifest_of(files: dict[str, bytes]) -> Manifest:
    listed = tuple(
        BundleFile(name=name, sha256=hashlib.sha256(data).hexdigest(), length=len(data))
        for name, data in files.items()
    )
    return Manifest(
        model="digits", version=1, profile="this-machine", variant="v", inputs=(), outputs=(),
        pipeline=(StepSpec(name="model"),),
        network=ModelSpec(runtime="onnxruntime", file="model.onnx", inputs=(), outputs=()),
        files=listed,
    )  # fmt: skip


def tar_of(*members: tuple[str | tarfile.TarInfo, bytes]) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            if info.isreg():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    buffer.seek(0)
    return buffer


def head(files: dict[str, bytes]) -> tuple[str, bytes]:
    return "manifest.json", manifest_of(files).model_dump_json().encode()


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


FILES = {"model.onnx": b"weights"}


def test_unpacks_what_the_manifest_lists(tmp_path: Path) -> None:
    unpack(tar_of(head(FILES), ("model.onnx", b"weights")), tmp_path, Files())
    assert (tmp_path / "model.onnx").read_bytes() == b"weights"
    assert (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize(
    ("bundle", "complaint"),
    [
        (tar_of(("model.onnx", b"weights"), head(FILES)), "does not begin with"),
        (tar_of(head(FILES)), "missing from the bundle"),
        (tar_of(head(FILES), ("model.onnx", b"WEIGHTS")), "differs"),
        (tar_of(head(FILES), ("model.onnx", b"weights, and more")), "too long"),
        (tar_of(head(FILES), ("../evil", b"x")), "not in the manifest"),
        (tar_of(head(FILES), ("/etc/evil", b"x")), "not in the manifest"),
        (tar_of(head(FILES), ("extra", b"x")), "not in the manifest"),
        (tar_of(head(FILES), *[("model.onnx", b"weights")] * 2), "comes twice"),
        (
            tar_of(head(FILES), (special("model.onnx", tarfile.SYMTYPE, "/etc/passwd"), b"")),
            "no plain file",
        ),
        (
            tar_of(head(FILES), (special("model.onnx", tarfile.LNKTYPE, "manifest.json"), b"")),
            "no plain file",
        ),
        (tar_of(head(FILES), (special("model.onnx", tarfile.FIFOTYPE), b"")), "no plain file"),
        (tar_of(head(FILES), (special("model.onnx", tarfile.DIRTYPE), b"")), "no plain file"),
        (tar_of(("manifest.json", b"{}")), "does not unpack"),
        (tar_of(("manifest.json", b" " * (257 * 1024))), "too long"),
        (io.BytesIO(b"not a tar" * 100), "does not unpack"),
        (io.BytesIO(b""), "does not unpack"),
    ],
)
def test_refuses_what_the_manifest_does_not_vouch_for(
    tmp_path: Path, bundle: io.BytesIO, complaint: str
) -> None:
    inside = tmp_path / "slot"
    inside.mkdir()
    with pytest.raises(BadBundle, match=complaint):
        unpack(bundle, inside, Files())
    assert list(tmp_path.iterdir()) == [inside]
    assert not any(path.is_symlink() for path in inside.iterdir())


def form(data: bytes, algo: str = "zstd", ram_needed: int = 0) -> Encoding:
    return Encoding.model_validate(
        {
            "algo": algo, "sha256": hashlib.sha256(data).hexdigest(), "length": len(data),
            "chunks_sha256": SHA, "ram_needed": ram_needed,
        }
    )  # fmt: skip


def decoded(tmp_path: Path, data: bytes, length: int, sha256: str, algo: str = "zstd") -> bytes:
    (tmp_path / "packed").write_bytes(data)
    destination = tmp_path / "raw"
    decode(form(data, algo), tmp_path / "packed", length, sha256, destination)
    return destination.read_bytes()


@pytest.mark.parametrize("algo", ["raw", "zstd"])
def test_decodes_to_the_signed_bytes(tmp_path: Path, algo: str) -> None:
    raw = b"weights" * 1000
    packed = zstandard.compress(raw) if algo == "zstd" else raw
    digest = hashlib.sha256(raw).hexdigest()
    assert decoded(tmp_path, packed, len(raw), digest, algo) == raw


def test_a_decompression_bomb_stops_at_the_signed_length(tmp_path: Path) -> None:
    bomb = zstandard.compress(b"\0" * (64 << 20))
    with pytest.raises(BadBundle, match="decodes to more"):
        decoded(tmp_path, bomb, 1000, SHA)
    assert (tmp_path / "raw").stat().st_size <= 1000


def test_an_oversized_window_is_refused(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    wide = b"".join(compressor.compress(bytes([n]) * (1 << 20)) for n in range(20))
    wide += compressor.flush()
    with pytest.raises(BadBundle, match="does not decode"):
        decoded(tmp_path, wide, 20 << 20, SHA)


@pytest.mark.parametrize("cut", [1, 10])
def test_a_truncated_stream_is_refused(tmp_path: Path, cut: int) -> None:
    raw = bytes(range(256)) * 50
    packed = zstandard.compress(raw)[:-cut]
    with pytest.raises(BadBundle):
        decoded(tmp_path, packed, len(raw), hashlib.sha256(raw).hexdigest())


def test_takes_the_shortest_form_that_fits_the_memory() -> None:
    small, large = form(b"x", ram_needed=9 << 20), form(b"xxx", "raw")
    assert choose([large, small], 256 << 20) is small
    assert choose([large, small], 1 << 20) is large
    with pytest.raises(BadBundle):
        choose([small], 1 << 20)


def test_a_long_file_passes_through_memory_in_blocks(tmp_path: Path) -> None:
    files = {"model.onnx": bytes(5 << 20)}
    blocks: list[int] = []

    class Watching(Files):
        def write(self, path: Path, data: bytes | Iterable[bytes]) -> None:
            if not isinstance(data, bytes):
                data = list(data)
                blocks.extend(map(len, data))
            super().write(path, data)

    unpack(tar_of(head(files), ("model.onnx", files["model.onnx"])), tmp_path, Watching())
    assert (tmp_path / "model.onnx").read_bytes() == files["model.onnx"]
    assert max(blocks) <= 1 << 20
