"""Rows that the control plane hands out for a comparison."""

from __future__ import annotations

import io

import numpy as np
import pytest

from cloud.parity.errors import InputsDoNotFit
from cloud.parity.inputs import unpack_rows


def packed(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_rows_come_by_their_names() -> None:
    rows = unpack_rows(packed(x=np.arange(3)), "rows")
    assert {name: array.tolist() for name, array in rows.items()} == {"x": [0, 1, 2]}


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04xx", b"\x93NUMPY", packed(x=np.arange(999))[:-40], packed()]
)
def test_what_is_no_archive_of_arrays_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(InputsDoNotFit, match=r"^rows: ") as caught:
        unpack_rows(data, "rows")
    assert "\n" not in str(caught.value)
