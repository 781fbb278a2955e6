from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from edge_agent.runtime import Tensors, open_session
from edge_agent.wire.manifest import ModelSpec
from optimizer.errors import RecipeFailed, UnknownRecipe
from optimizer.passes import Artifact, PassContext, find, recipes
from optimizer.profiles import load_profile
from optimizer.task import TrainedMember


def context(
    directory: Path, member: TrainedMember, images: NDArray[np.float32], profile: str
) -> PassContext:
    directory.mkdir(parents=True, exist_ok=True)
    calibration = {"x": (images[:300] / 16)[:, None]}
    return PassContext(member.onnx_path, calibration, directory, load_profile(profile))


def answers(directory: Path, artifact: Artifact, tensors: Tensors) -> tuple[NDArray, str]:
    spec = ModelSpec(runtime=artifact.runtime, file=artifact.entry, inputs=(), outputs=())
    session = open_session(directory / artifact.entry, spec)
    try:
        return session.run(tensors)["logits"], session.provenance.precision
    finally:
        session.close()


def weights(path: Path) -> dict[str, NDArray]:
    return {item.name: numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}


@pytest.mark.parametrize(
    ("recipe", "precision", "agreement"),
    [
        ("fp32", "fp32", 1.0),
        ("ort-int8", "int8", 0.98),
        ("openvino-fp32", "fp32", 1.0),
        pytest.param("openvino-int8", "int8", 0.98, marks=pytest.mark.slow),
    ],
)
def test_a_recipe_answers_like_the_network_one_by_one_and_together(
    tmp_path, members, digits, recipe: str, precision: str, agreement: float
) -> None:
    work = context(tmp_path / recipe, members[1], digits.images, "this-machine")
    artifact = find(recipe).apply(work)
    assert sorted(artifact.files) == sorted(path.name for path in work.directory.iterdir())
    x = (digits.images[1200:1400] / 16)[:, None]
    plain = find("fp32").apply(
        context(tmp_path / "plain", members[1], digits.images, "this-machine")
    )
    wanted, _ = answers(tmp_path / "plain", plain, {"x": x})
    together, actual = answers(work.directory, artifact, {"x": x})
    assert actual == artifact.precision == precision
    assert np.mean(together.argmax(1) == wanted.argmax(1)) >= agreement
    alone = [answers(work.directory, artifact, {"x": x[i : i + 1]})[0] for i in range(3)]
    np.testing.assert_allclose(np.concatenate(alone), together[:3], atol=1e-3)


def test_weights_lose_a_bit_where_int8_products_would_saturate(tmp_path, members, digits) -> None:
    widest = {}
    for profile in ("generic-x86-64", "x86-64-vnni"):
        work = context(tmp_path / profile, members[1], digits.images, profile)
        find("ort-int8").apply(work)
        quantised = [
            a for a in weights(work.directory / "model.onnx").values() if a.dtype == np.int8
        ]
        widest[profile] = max(int(np.abs(a.astype(int)).max()) for a in quantised if a.ndim > 1)
    assert widest == {"generic-x86-64": 64, "x86-64-vnni": 127}


@pytest.mark.parametrize(
    ("profile", "dtype"), [("x86-64-vnni", np.uint8), ("generic-arm64", np.int8)]
)
def test_activations_have_the_sign_that_the_kernels_want(
    tmp_path, members, digits, profile: str, dtype: type
) -> None:
    work = context(tmp_path, members[0], digits.images, profile)
    find("ort-int8").apply(work)
    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "QuantizeLinear" in kinds
    assert not any(kind.startswith("QLinear") for kind in kinds)
    assert weights(tmp_path / "model.onnx")["x_zero_point"].dtype == dtype


def test_calibration_batch_by_batch_finds_the_same_ranges(tmp_path, members, digits) -> None:
    files = []
    for batch in (16, 300):
        work = context(tmp_path / str(batch), members[1], digits.images, "x86-64-vnni")
        find("ort-int8", {"batch": batch}).apply(work)
        files.append((work.directory / "model.onnx").read_bytes())
    assert files[0] == files[1]


def test_quantising_without_data_is_refused(tmp_path, members) -> None:
    work = PassContext(members[0].onnx_path, {}, tmp_path, load_profile("generic-x86-64"))
    with pytest.raises(RecipeFailed, match="needs calibration data"):
        find("ort-int8").apply(work)


def test_a_file_that_is_no_network_is_one_clear_line(tmp_path, digits) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a network")
    work = context(tmp_path / "out", TrainedMember("m", broken), digits.images, "generic-x86-64")
    with pytest.raises(RecipeFailed, match=r"^broken\.onnx: not an ONNX file$") as caught:
        find("ort-int8").apply(work)
    assert "\n" not in str(caught.value)


def test_names_and_configs_are_checked() -> None:
    assert {"fp32", "ort-int8", "openvino-fp32", "openvino-int8"} <= set(recipes())
    with pytest.raises(UnknownRecipe, match="did you mean 'ort-int8'"):
        find("ort-int")
    with pytest.raises(RecipeFailed, match="recipe 'ort-int8': rows: Input should be greater"):
        find("ort-int8", {"rows": 0})
