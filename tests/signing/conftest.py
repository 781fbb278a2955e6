"""Control planes without a database: both repositories, keys that move, a clock."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud.signing import Director, DirectorTarget, ImageRepository, KeyStore, init_keys
from edge_agent.wire.manifest import Encoding, ReleaseInfo, target_path

SHA = "a" * 64


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class Plane:
    """Both repositories; offline keys go to `usb` and come back."""

    def __init__(self, directory: Path, pristine: Path) -> None:
        self.directory = directory
        self.keys_directory = directory / "keys"
        shutil.copytree(pristine, self.keys_directory)
        self.usb = directory / "usb"
        self.usb.mkdir()
        self.clock = Clock()
        self.open()

    def open(self) -> None:
        self.keys = KeyStore(self.keys_directory, "passphrase")
        self.image = ImageRepository(self.directory / "image", self.keys, self.clock)
        self.director = Director(self.directory / "director", self.keys, self.clock)

    @property
    def repositories(self) -> dict:
        return {"image": self.image, "director": self.director}

    def take_away(self, *patterns: str) -> None:
        for pattern in patterns:
            for path in self.keys_directory.glob(pattern):
                path.rename(self.usb / path.name)
        self.open()

    def take_offline(self) -> None:
        self.take_away("*-root-*.pem", "image-targets-*.pem")

    def publish(self, counter: int, *, model: str = "digits", stage: bool = True) -> bool:
        form = Encoding(algo="raw", sha256=SHA, length=3, chunks_sha256=SHA)
        info = ReleaseInfo(
            model=model, version=counter, profile="p", counter=counter, encodings=(form,)
        )
        return self.image.publish(target_path(model, "p", counter), 3, SHA, info, stage=stage)

    def assign(self, device: str, counter: int = 1) -> None:
        form = Encoding(algo="raw", sha256=SHA, length=3, chunks_sha256=SHA)
        info = ReleaseInfo(
            model="digits", version=counter, profile="p", counter=counter, encodings=(form,)
        )
        target = DirectorTarget(target_path("digits", "p", counter), 3, SHA, info, 1)
        self.director.assign(device, [target])


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return init_keys(tmp_path_factory.mktemp("pristine") / "keys", "passphrase").directory


@pytest.fixture
def plane(tmp_path: Path, pristine: Path) -> Iterator[Plane]:
    yield Plane(tmp_path, pristine)
