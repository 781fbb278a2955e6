"""Errors of the datasets room.

DatasetError            rows cannot become, or be read as, a dataset version
├── UnknownDataset      no version has this id (user)
├── BadRows             shapes, labels or splits do not fit together (user)
├── GoldenChanged       a child version would change its parent's frozen golden rows (user)
├── Leak                an input would be both trained on and judged by (user)
├── NothingCollected    the field holds no labelled sample that the base lacks (nobody: wait)
└── BadSample           a stored sample does not decode (device)
"""

from __future__ import annotations

from cloud.errors import NotFound, UserError


class DatasetError(UserError):
    """Rows cannot become, or be read as, a dataset version."""


class UnknownDataset(DatasetError, NotFound):
    def __init__(self, dataset: str) -> None:
        super().__init__(f"no dataset version {dataset}")
        self.dataset = dataset


class BadRows(DatasetError):
    """Shapes, labels or splits do not fit together."""


class GoldenChanged(DatasetError):
    """Golden rows are frozen: a child has exactly those of its parent."""


class Leak(DatasetError):
    """The same input is in the train split and in one that judges."""


class NothingCollected(DatasetError):
    """No labelled field sample is new to the base."""


class BadSample(DatasetError):
    """A stored sample does not decode into its declared tensors."""
