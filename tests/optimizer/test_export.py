from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_agent.runtime import open_session
from edge_agent.wire.manifest import ModelSpec
from optimizer.errors import ExportFailed
from optimizer.export import export_onnx, read_interface


def test_a_file_that_is_no_network_has_no_interface(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"\xff\xff garbage")
    with pytest.raises(ExportFailed, match=r"^x\.onnx: not an ONNX file$"):
        read_interface(path)


def test_the_interface_has_a_free_batch_axis(members) -> None:
    interface = read_interface(members[0].onnx_path)
    assert [(t.name, t.datatype, t.shape) for t in interface.inputs] == [
        ("x", "FP32", (-1, 1, 8, 8))
    ]
    assert [(t.name, t.shape) for t in interface.outputs] == [("logits", (-1, 10))]


@pytest.mark.slow
def test_torch_networks_are_exported_with_a_free_batch_axis_and_without_traces(
    tmp_path: Path,
) -> None:
    from torch import nn

    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    path = tmp_path / "net.onnx"
    example = {"image": np.ones((1, 1, 8, 8), np.float32)}
    interface = export_onnx(module, example, path, ["logits"])
    assert module.training
    assert interface.inputs[0].shape == (-1, 1, 8, 8)
    text = path.read_bytes()
    assert b"site-packages" not in text
    assert b".py" not in text
    spec = ModelSpec(runtime="onnxruntime", file=path.name, inputs=(), outputs=())
    session = open_session(path, spec)
    for batch in (1, 5):
        x = np.random.default_rng(0).normal(size=(batch, 1, 8, 8)).astype(np.float32)
        assert session.run({"image": x})["logits"].shape == (batch, 10)
    session.close()


@pytest.mark.slow
def test_a_network_that_answers_nan_is_not_exported(tmp_path: Path) -> None:
    import torch
    from torch import nn

    module = nn.Linear(4, 2)
    with torch.no_grad():
        module.bias.fill_(float("nan"))
    path = tmp_path / "nan.onnx"
    with pytest.raises(ExportFailed, match="NaN"):
        export_onnx(module, {"x": np.ones((1, 4), np.float32)}, path, ["y"])
    assert not path.exists()


@pytest.mark.slow
def test_a_network_that_torch_cannot_trace_is_one_clear_line(tmp_path: Path) -> None:
    import torch
    from torch import nn

    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(ExportFailed, match="cannot be exported") as caught:
        export_onnx(Branching(), {"x": np.ones((1, 4), np.float32)}, tmp_path / "b.onnx", ["y"])
    assert "\n" not in str(caught.value)
