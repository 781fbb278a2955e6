from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from edge_agent.wire.manifest import SamplingSpec, TensorSpec
from optimizer.config_file import Document, load_yaml
from optimizer.errors import ConfigError


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    latency_ms: Annotated[float, Field(gt=0)] | None = None
    percentile: float = 0.99
    mode: Literal["quick", "thorough"] = "quick"


class File(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    labels: tuple[str, ...] = ()
    budget: Inner | None = None
    profiles: dict[str, Inner] = {}
    inputs: list[TensorSpec] = []
    sampling: SamplingSpec = SamplingSpec()
    ratio: float = 0.0


def load(tmp_path: Path, text: str) -> File:
    path = tmp_path / "skerry.yaml"
    path.write_text(text, encoding="utf-8")
    return load_yaml(path, File)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nbudgt: {}\n", "skerry.yaml:2: unknown key 'budgt'; did you mean 'budget'?"),
        (
            "name: a\nprofiles:\n  pi:\n    latency_ns: 3\n",
            "skerry.yaml:4: unknown key 'latency_ns'; did you mean 'latency_ms'?",
        ),
        (
            "name: a\nsampling: {uniform_rte: 0.1}\n",
            "skerry.yaml:2: unknown key 'uniform_rte'; did you mean 'uniform_rate'?",
        ),
        (
            "name: a\ninputs:\n- {name: x, datatype: FP23, shape: [1]}\n",
            "skerry.yaml:3: inputs[0].datatype: 'FP23' is not known; did you mean 'FP32'?",
        ),
        ("labels: [a]\n", "skerry.yaml:1: missing key 'name'"),
        ("name: a\ninputs:\n- {name: x}\n", "skerry.yaml:3: missing key 'datatype' in inputs[0]"),
        (
            "name: a\nbudget:\n  mode: quik\n",
            "skerry.yaml:3: budget.mode: 'quik' is not known; did you mean 'quick'?",
        ),
        (
            "name: a\nbudget:\n  latency_ms: -1\n",
            "skerry.yaml:3: budget.latency_ms: input should be greater than 0, not -1",
        ),
        (
            "name: a\nbudget:\n  latency_ms: fast\n",
            "skerry.yaml:3: budget.latency_ms: input should be a valid number, unable to parse "
            "string as a number, not 'fast'",
        ),
        (
            "name: a\nlabels: [a, 1]\n",
            'skerry.yaml:2: labels[1]: input should be a valid string; put it in quotes: "1"',
        ),
        ("name: a\nratio: yes\n", None),
        ("name: a\nratio: true\n", "skerry.yaml:2: ratio: expected a number, not true"),
        ("name: a\nname: b\n", "skerry.yaml:2: key 'name' was already given in line 1"),
        ("name: [\n", "skerry.yaml:2: not valid YAML: expected the node content"),
        ("- a\n", "skerry.yaml:1: expected keys and values, not a list"),
        ("", "skerry.yaml:1: missing key 'name'"),
        ("name: !!python/name:os.system x\n", "skerry.yaml:1: tag 'python/name:os.system'"),
        ("name: a\nother: [&a [x], *a]\n", "skerry.yaml:2: unknown key 'other'"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, message: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    if message is not None:
        assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_first_of_several_mistakes_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "extra: 1\nname: 5\nratio: x\n")
    assert caught.value.line == 1


def test_words_that_old_yaml_took_for_truth_or_dates_are_text(tmp_path: Path) -> None:
    file = load(tmp_path, "name: 2024-01-01\nlabels: [no, on, 'y', ~a]\nratio: 1e-3\n")
    assert file.name == "2024-01-01"
    assert file.labels == ("no", "on", "y", "~a")
    assert file.ratio == 1e-3


def test_a_value_far_down_is_found_for_a_later_check(tmp_path: Path) -> None:
    document = Document.parse("a:\n  b:\n  - x\n  - y: 1\n", tmp_path / "f.yaml")
    assert document.line(("a", "b", 1, "y")) == 4
    assert (
        str(document.error(("a", "b", 1, "absent"), "no such thing")) == "f.yaml:4: no such thing"
    )


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^none\.yaml:1: cannot be read: No such file"):
        load_yaml(tmp_path / "none.yaml", File)


def test_aliases_that_multiply_are_refused(tmp_path: Path) -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, 9):
        text += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n"
    with pytest.raises(ConfigError, match="too large or nested too deeply"):
        Document.parse(text, tmp_path / "bomb.yaml")


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nested too deeply"):
        Document.parse("[" * 5000 + "]" * 5000, tmp_path / "deep.yaml")
