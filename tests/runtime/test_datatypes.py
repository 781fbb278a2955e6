from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from edge_agent.runtime import datatype_of, numpy_dtype
from edge_agent.wire.manifest import Datatype

REVERSIBLE = [name for name in get_args(Datatype) if name != "BF16"]


@pytest.mark.parametrize("name", REVERSIBLE)
def test_every_datatype_survives_the_way_there_and_back(name: str) -> None:
    assert datatype_of(numpy_dtype(name)) == name


def test_bf16_is_float32_in_here() -> None:
    assert numpy_dtype("BF16") == np.float32
    assert datatype_of(numpy_dtype("BF16")) == "FP32"


@pytest.mark.parametrize("name", ["FLOAT", ""])
def test_a_type_that_the_protocol_lacks_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not supported"):
        numpy_dtype(name)


def test_a_dtype_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="has no datatype name"):
        datatype_of(np.dtype(np.complex64))
