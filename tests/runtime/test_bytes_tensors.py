"""BYTES tensors as binary: every element comes back, and damaged data is named in one line."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from edge_agent.runtime import join_elements, split_elements


def test_elements_come_back_as_bytes_whatever_they_hold() -> None:
    array = np.array([[b"\x00\xff", b""], ["ü", b"a" * 300]], dtype=object)
    back = split_elements(memoryview(join_elements(array)), 4)
    assert back.tolist() == [b"\x00\xff", b"", "ü".encode(), b"a" * 300]


def test_each_element_is_its_length_and_its_bytes() -> None:
    assert join_elements(np.array(["ab"])) == b"\x02\x00\x00\x00ab"


@pytest.mark.parametrize(
    ("data", "count", "says"),
    [
        (b"", 1, "1 elements do not fit into 0 bytes"),
        (struct.pack("<I", 4) + b"abcd", 2, "cut short at element 1"),
        (struct.pack("<I", 9) + b"ab", 1, "element 0 exceeds the data"),
        (struct.pack("<I", 1) + b"ab", 1, "1 bytes too many"),
        (b"a", 0, "1 bytes too many"),
        (b"abcd", 10**15, "do not fit"),
    ],
)
def test_data_that_is_not_that_many_elements_is_refused(data: bytes, count: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        split_elements(memoryview(data), count)
