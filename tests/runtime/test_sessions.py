"""Sessions of every runtime that is installed, against the same expectations."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from edge_agent.runtime import (
    ModelNotLoadable,
    RunFailed,
    available,
    open_session,
)
from edge_agent.wire.manifest import ModelSpec, TensorSpec
from tests.runtime.networks import (
    NETWORK,
    deep_spec,
    images,
    open_linear,
    write_deep,
    write_linear,
    write_quantised,
)

RUNTIMES = sorted(available())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_session_computes_what_the_network_says(runtime: str, tmp_path: Path) -> None:
    session = open_linear(tmp_path, runtime)
    weights = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    x = images(3)
    logits = session.run({"x": x})["logits"]
    np.testing.assert_allclose(logits, x.reshape(3, 64) @ weights, rtol=1e-4, atol=1e-4)
    assert logits.dtype == np.float32


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_fp32_network_is_run_and_reported_in_fp32(runtime: str, tmp_path: Path) -> None:
    provenance = open_linear(tmp_path, runtime).provenance
    assert provenance.runtime == runtime
    assert provenance.precision == "fp32"
    assert provenance.threads == 1
    assert provenance.version == available()[runtime].split("+")[0]


def test_integer_arithmetic_is_reported_whatever_the_manifest_claims(tmp_path: Path) -> None:
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
    out = TensorSpec(name="y", datatype="FP32", shape=(-1, 4))
    network = ModelSpec(
        runtime="onnxruntime", file="q.onnx", precision="fp32", inputs=(spec,), outputs=(out,)
    )
    session = open_session(write_quantised(tmp_path / "q.onnx"), network)
    assert session.provenance.precision == "int8"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_tensors_that_the_network_does_not_name_are_ignored(runtime: str, tmp_path: Path) -> None:
    session = open_linear(tmp_path, runtime)
    assert set(session.run({"x": images(1), "size": np.zeros((1, 2))})) == {"logits"}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_missing_input_is_named(runtime: str, tmp_path: Path) -> None:
    session = open_linear(tmp_path, runtime)
    with pytest.raises(RunFailed, match="network input 'x' is missing; the steps before it gave y"):
        session.run({"y": images(1)})


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_unfit_shape_fails_the_run_not_the_session(runtime: str, tmp_path: Path) -> None:
    session = open_linear(tmp_path, runtime)
    with pytest.raises(RunFailed):
        session.run({"x": np.zeros((1, 8, 9), np.float32)})
    assert session.run({"x": images(2)})["logits"].shape == (2, 10)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("layout", ["transposed", "broadcast", "read-only", "every second row"])
def test_the_layout_of_an_input_does_not_change_the_answer(
    runtime: str, layout: str, tmp_path: Path
) -> None:
    """Large enough that what was freed too early is given back and written over."""
    path = write_deep(tmp_path / "model.onnx", width=256, layers=1)
    reference = open_session(path, deep_spec("onnxruntime", 256))
    session = open_session(path, deep_spec(runtime, 256))
    for seed in range(5):
        values = np.random.default_rng(seed).random((256, 256), np.float32)
        if layout == "transposed":
            values = values.T
        elif layout == "broadcast":
            values = np.broadcast_to(values[:1], (256, 256))
        elif layout == "read-only":
            values.flags.writeable = False
        else:
            values = values[::2]
        expected = reference.run({"x": values.copy()})["y"]
        np.testing.assert_allclose(session.run({"x": values})["y"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif("openvino" not in RUNTIMES, reason="openvino is not installed")
def test_a_port_of_several_names_is_known_by_the_one_of_the_spec(tmp_path: Path) -> None:
    """OpenVINO puts the names of what passes unchanged through the network together."""
    import openvino as ov

    path = write_linear(tmp_path / "plain.onnx")
    model = ov.Core().read_model(str(path))
    for port, names in ((model.input(0), {"a", "x", "z"}), (model.output(0), {"b", "logits", "u"})):
        port.get_tensor().set_names(names)
    ov.save_model(model, str(tmp_path / "model.xml"), compress_to_fp16=False)
    for x, logits in (("a", "b"), ("x", "logits"), ("z", "u")):
        spec = NETWORK.model_copy(
            update={
                "runtime": "openvino",
                "inputs": (NETWORK.inputs[0].model_copy(update={"name": x}),),
                "outputs": (NETWORK.outputs[0].model_copy(update={"name": logits}),),
            }
        )
        session = open_session(tmp_path / "model.xml", spec)
        assert set(session.run({x: images(1)})) == {logits}
        session.close()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_closed_session_says_so(runtime: str, tmp_path: Path) -> None:
    session = open_linear(tmp_path, runtime)
    session.close()
    session.close()
    with pytest.raises(RunFailed, match="closed"):
        session.run({"x": images(1)})


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_threads_share_a_session_without_mixing_answers(runtime: str, tmp_path: Path) -> None:
    session = open_linear(tmp_path, runtime)
    batches = [images(1, seed) for seed in range(8)]
    expected = [session.run({"x": batch})["logits"] for batch in batches]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(50):
            answer = session.run({"x": batches[index]})["logits"]
            if not np.array_equal(answer, expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("content", [None, b"", b"not a network at all"])
def test_a_missing_or_damaged_file_is_one_clear_error(
    runtime: str, content: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelNotLoadable, match=r"^model\.onnx: cannot be loaded: ") as caught:
        open_session(path, NETWORK.model_copy(update={"runtime": runtime}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_network_with_other_names_than_its_manifest_is_refused(
    runtime: str, tmp_path: Path
) -> None:
    path = write_linear(tmp_path / "model.onnx")
    renamed = TensorSpec(name="pixels", datatype="FP32", shape=(-1, 8, 8))
    spec = NETWORK.model_copy(update={"runtime": runtime, "inputs": (renamed,)})
    with pytest.raises(ModelNotLoadable, match="its inputs are x, the manifest says pixels"):
        open_session(path, spec)
