"""Predictions inside an application's own process: no server, no network, no agent needed.

    from edge_agent import Predictor

    with Predictor("/var/lib/skerry", model="digits") as predictor:
        outputs = predictor.predict({"image": batch})          # arrays in, arrays out
        answer = predictor.predict_image("photo.jpg")           # what the task route answers

Rules:
    * What runs is the committed version of an agent's directory, as on its server: the same steps,
      checkers and services.  A version on probation is left alone.
    * Nothing is written, and nothing locked for longer than one query: the agent may run and update
      meanwhile.  An update is followed when `refresh` is called, not by itself.
    * Every file is held against its digest, and the known answers are checked, before use.
    * `predict…` may be called from several threads, and while `refresh` runs.
    * Nothing is sampled, counted or sent: that is the agent's work.

PredictorError
├── NothingInstalled  (user) neither an agent's directory nor a bundle, or nothing committed in it
├── NoSuchModel       (user) the model is not there, or several are and none was named
├── BundleBroken      (operator) a file, the network or a known answer is not what it must be
└── PredictorClosed   (user) it was closed

What is wrong with a request is `InputError`, `Rejected` or `StepFailed` of `edge_agent.pipeline`.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import orjson
from pydantic import JsonValue

from edge_agent.pipeline import InputError, Pipeline, PipelineError, golden, task
from edge_agent.runtime import Array, SessionError, Tensors
from edge_agent.update.errors import BadBundle
from edge_agent.update.reading import STORE_NAME, committed, is_store, require_intact
from edge_agent.wire.manifest import MANIFEST_NAME, Manifest

Answer = dict[str, JsonValue]
"""What the task route says of one item."""


class PredictorError(Exception):
    """Base of what is wrong with a predictor rather than with a request."""


class NothingInstalled(PredictorError):
    """The directory holds nothing that could answer."""


class NoSuchModel(PredictorError):
    """The model is not in the directory, or none was named where there are several."""


class BundleBroken(PredictorError):
    """The bundle cannot be used as it is."""


class PredictorClosed(PredictorError):
    """The predictor was closed."""


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a version is, and what tells it from another."""

    directory: Path
    identity: str


class _Loaded:
    """One opened version; closed when it is retired and nobody uses it."""

    def __init__(self, manifest: Manifest, pipeline: Pipeline, identity: str) -> None:
        self.manifest = manifest
        self.pipeline = pipeline
        self.identity = identity
        self._lock = threading.Lock()
        self._users = 0
        self._retired = False

    def enter(self) -> bool:
        """Begin a use; False when it is retired."""
        with self._lock:
            self._users += not self._retired
            return not self._retired

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            idle = self._retired and not self._users
        if idle:
            self.pipeline.close()

    def retire(self) -> None:
        with self._lock:
            idle = not self._retired and not self._users
            self._retired = True
        if idle:
            self.pipeline.close()


class Predictor:
    """One model of a directory, opened in this process.  See the module."""

    def __init__(
        self, directory: str | Path, model: str | None = None, *, check_golden: bool = True
    ) -> None:
        """Open the committed version.

        Args:
            directory: of an agent (`skerry-agent run --dir`), or an unpacked bundle.
            model: which one; may be left out where there is one only.
            check_golden: run the known answers first.

        Raises:
            NothingInstalled: there is nothing to open.
            NoSuchModel: not this model, or several and none was named.
            BundleBroken: it is damaged, or does not work here.
        """
        self._directory = Path(directory)
        self._model = model
        self._check_golden = check_golden
        self._refreshing = threading.Lock()
        self._closed = False
        self._loaded = self._open_installed(self._find())

    # ── what is opened ───────────────────────────────────────────────────────────────────────────

    @property
    def manifest(self) -> Manifest:
        """Of the version in use."""
        return self._loaded.manifest

    @property
    def model(self) -> str:
        return self.manifest.model

    @property
    def version(self) -> int:
        return self.manifest.version

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the network's outputs; empty where it has none."""
        return self.manifest.labels

    def refresh(self) -> bool:
        """Follow an update: open what is committed now, if that is another version.

        Returns:
            Whether the version changed.

        Raises:
            PredictorError: as at the start; the version before stays in use.
        """
        with self._refreshing:
            self._require_open()
            source = self._find()
            if source.identity == self._loaded.identity:
                return False
            before, self._loaded = self._loaded, self._open_installed(source)
            before.retire()
            return True

    def close(self) -> None:
        """Give the memory back once running predictions have ended.  Idempotent."""
        with self._refreshing:
            self._closed = True
            self._loaded.retire()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ── predictions ──────────────────────────────────────────────────────────────────────────────

    def predict(self, tensors: Mapping[str, Array]) -> Tensors:
        """Answer one batch.

        Args:
            tensors: exactly `manifest.inputs`, each with the batch axis first.

        Returns:
            `manifest.outputs` by name, in their order.

        Raises:
            InputError: the tensors do not fit the interface.
            Rejected: a checker refused them.
            StepFailed: the pipeline failed.
            PredictorClosed: the predictor was closed.
        """
        if not isinstance(tensors, Mapping):
            raise InputError(f"tensors are a mapping of names to arrays, not {_kind(tensors)}")
        for name, array in tensors.items():
            if not isinstance(name, str) or not isinstance(array, np.ndarray):
                raise InputError(f"input {name!r} is {_kind(array)}, expected a NumPy array")
        with self._using() as loaded:
            return loaded.pipeline.run(tensors).tensors

    def predict_items(self, items: Sequence[JsonValue] | Mapping[str, JsonValue]) -> list[Answer]:
        """Answer items given as plain values, as the task route does with JSON.

        Args:
            items: a list with one value an item for a model of one input, or one mapping an item;
                or a mapping of input names to values.

        Returns:
            One answer an item, as `POST /v2/models/M/predict` gives it.

        Raises:
            InputError: the values do not fit the interface.
            Rejected, StepFailed, PredictorClosed: see `predict`.
        """
        request = {"inputs": items} if isinstance(items, Mapping) else {"instances": items}
        try:
            body = orjson.dumps(request, _plain, orjson.OPT_SERIALIZE_NUMPY)
        except TypeError as error:
            raise InputError(f"the items are no plain values: {error}") from error
        with self._using() as loaded:
            tensors = task.decode_json(body, loaded.manifest.inputs)
            return _answers(loaded, tensors)

    def predict_image(self, image: str | Path | bytes | bytearray | memoryview) -> Answer:
        """Answer one image, as the task route does.

        Args:
            image: a file's path, or its bytes: JPEG, PNG or what else Pillow reads.

        Raises:
            InputError: the model takes no images, or this is none it can take.
            OSError: the file cannot be read.
            Rejected, StepFailed, PredictorClosed: see `predict`.
        """
        if isinstance(image, str | Path):
            data = Path(image).read_bytes()
        elif isinstance(image, bytes | bytearray | memoryview):
            data = bytes(image)
        else:
            raise InputError(f"an image is a path or bytes, not {_kind(image)}")
        with self._using() as loaded:
            manifest = loaded.manifest
            if manifest.image is None:
                raise InputError(f"model {manifest.model!r} takes no images")
            name = manifest.image.input
            spec = next((spec for spec in manifest.inputs if spec.name == name), None)
            if spec is None:
                raise InputError(f"model {manifest.model!r} has no input {name!r} for images")
            [answer] = _answers(loaded, task.decode_image(data, manifest.image, spec))
            return answer

    # ── the rest ─────────────────────────────────────────────────────────────────────────────────

    @contextlib.contextmanager
    def _using(self) -> Iterator[_Loaded]:
        loaded = self._loaded
        while not loaded.enter():
            self._require_open()
            loaded = self._loaded  # refreshed between the look and the use
        try:
            yield loaded
        finally:
            loaded.leave()

    def _require_open(self) -> None:
        if self._closed:
            raise PredictorClosed("the predictor was closed")

    def _find(self) -> _Source:
        root = self._directory / STORE_NAME
        try:
            if is_store(root):
                return self._find_committed(root)
            manifest = (self._directory / MANIFEST_NAME).read_bytes()
        except FileNotFoundError:
            raise NothingInstalled(
                f"{self._directory}: neither an agent's directory with a model nor a bundle"
            ) from None
        except OSError as error:
            raise NothingInstalled(f"{self._directory}: {error}") from error
        return _Source(self._directory, hashlib.sha256(manifest).hexdigest())

    def _find_committed(self, root: Path) -> _Source:
        found = committed(root)
        if not found:
            raise NothingInstalled(f"{self._directory}: no version is committed yet")
        names = ", ".join(found)
        if self._model is None:
            if len(found) > 1:
                raise NoSuchModel(f"{self._directory}: holds several models, name one of: {names}")
            [only] = found.values()
            return _Source(only.path, only.sha256)
        version = found.get(self._model)
        if version is None:
            raise NoSuchModel(f"{self._directory}: no model {self._model!r}; there is: {names}")
        return _Source(version.path, version.sha256)

    def _open_installed(self, source: _Source) -> _Loaded:
        try:
            return self._open(source)
        except BundleBroken:
            again = self._find()
            if again.identity == source.identity:
                raise
            return self._open(again)  # two updates in between took the slot away

    def _open(self, source: _Source) -> _Loaded:
        try:
            manifest = require_intact(source.directory)
            if self._model is not None and manifest.model != self._model:
                raise NoSuchModel(f"{self._directory}: is of {manifest.model!r}")
            pipeline = Pipeline.open(source.directory, manifest)
        except (OSError, BadBundle, PipelineError, SessionError) as error:
            raise BundleBroken(f"{source.directory}: {error}") from error
        try:
            if self._check_golden and manifest.golden is not None:
                golden.check(pipeline, source.directory / manifest.golden, manifest.golden_atol)
        except PipelineError as error:
            pipeline.close()
            raise BundleBroken(f"{source.directory}: {error}") from error
        return _Loaded(manifest, pipeline, source.identity)


def _plain(value: object) -> object:
    """What JSON is made of in place of `value`: arrays that are no plain block of memory."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"type {_kind(value)}")


def _kind(value: object) -> str:
    return type(value).__name__


def _answers(loaded: _Loaded, tensors: Tensors) -> list[Answer]:
    return task.answer(loaded.pipeline.run(tensors).tensors, loaded.manifest)
