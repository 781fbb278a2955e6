from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.pipeline import InputError, Interface, Tensors, validate
from edge_agent.wire.manifest import TensorSpec

SPECS = (
    TensorSpec(name="a", datatype="FP32", shape=(-1, 2)),
    TensorSpec(name="b", datatype="BF16", shape=(-1, -1)),
    TensorSpec(name="c", datatype="INT64", shape=(-1,)),
)

arrays = st.builds(
    lambda shape, dtype: np.zeros(shape, dtype),
    st.lists(st.integers(0, 2), max_size=3).map(tuple),
    st.sampled_from(["<f4", ">f4", "f2", "i8"]),
)


@settings(deadline=None, max_examples=300)
@given(
    st.dictionaries(st.sampled_from("abcd"), arrays),
    st.integers(0, 3),
    st.integers(1, 3),
)
def test_the_prepared_check_says_what_the_plain_one_says(
    tensors: Tensors, given_count: int, rows: int
) -> None:
    fitting: Tensors = {
        "a": np.zeros((rows, 2), "f4"),
        "b": np.zeros((rows, 3), "f4"),
        "c": np.zeros(rows, "i8"),
    }
    for name in list(fitting)[:given_count]:
        tensors[name] = fitting[name]
    specs = SPECS[:given_count] if given_count else SPECS
    try:
        expected: object = validate(tensors, specs)
    except InputError as error:
        expected = str(error)
    try:
        actual: object = Interface(specs).validate(tensors)
    except InputError as error:
        actual = str(error)
    assert actual == expected


def test_a_check_counts_the_items() -> None:
    tensors: Tensors = {"a": np.zeros((3, 2), "f4"), "c": np.zeros(3, "i8")}
    assert Interface((SPECS[0], SPECS[2])).validate(tensors) == 3


def test_an_interface_of_unknown_types_is_refused() -> None:
    unknown = TensorSpec.model_construct(name="x", datatype="FP8", shape=(-1,))
    with pytest.raises(InputError, match="tensor 'x': datatype 'FP8' is not supported"):
        Interface((unknown,))
