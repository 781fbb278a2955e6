"""Recipes that a project registers in Python files of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from optimizer.errors import ConfigError, RecipeFailed
from optimizer.passes import PassContext, find, recipes, register_files
from optimizer.profiles import load_profile
from tests.optimizer.small_networks import WIDTH, perceptron

MINE = '''\
"""Weights rounded to multiples of a step."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper
from pydantic import Field

from optimizer.passes import Artifact, PassContext, RecipeConfig, recipe


class Rounded(RecipeConfig):
    step: float = Field(default=0.01, gt=0)


@recipe("rounded", runtimes=("onnxruntime", "openvino"), precision="fp32", config=Rounded)
def rounded(context: PassContext, config: Rounded) -> Artifact:
    model = onnx.load(context.source)
    for item in model.graph.initializer:
        values = numpy_helper.to_array(item)
        values = (np.round(values / config.step) * config.step).astype(values.dtype)
        item.CopyFrom(numpy_helper.from_array(values, item.name))
    onnx.save(model, context.directory / "mine.onnx")
    return Artifact(("onnxruntime", "openvino"), "mine.onnx", ("mine.onnx",), "fp32")
'''

BODY = "from optimizer.passes import Artifact, RecipeConfig, recipe\n"


@pytest.fixture(autouse=True)
def _forgotten(tmp_path: Path) -> Iterator[None]:
    yield
    register_files(tmp_path, [])


def apply(directory: Path, name: str, **config: object):
    x = np.random.default_rng(0).normal(size=(8, WIDTH)).astype(np.float32)
    out = directory / "out"
    out.mkdir(exist_ok=True)
    source = perceptron(directory / "source.onnx", 16)
    context = PassContext(source, {"x": x}, out, load_profile("x86-64-vnni"))
    return find(name, config).apply(context)


def registered(directory: Path, text: str, name: str = "mine.py") -> Path:
    (directory / name).write_text(text)
    register_files(directory, [name])
    return directory


def test_a_recipe_of_a_project_is_found_configured_and_applied(tmp_path: Path) -> None:
    registered(tmp_path, MINE)
    assert "rounded" in recipes()
    artifact = apply(tmp_path, "rounded", step=0.5)
    made = onnx.load(tmp_path / "out" / artifact.entry).graph.initializer
    for item in made:
        assert not np.any(numpy_helper.to_array(item) % 0.5)
    with pytest.raises(RecipeFailed, match="recipe 'rounded': step: Input should be greater"):
        find("rounded", {"step": 0})


def test_recipes_of_another_project_are_forgotten(tmp_path: Path) -> None:
    registered(tmp_path, MINE)
    assert "rounded" not in register_files(tmp_path, [])
    assert "fp32" in recipes()


def test_a_name_is_given_once(tmp_path: Path) -> None:
    (tmp_path / "again.py").write_text(MINE)
    (tmp_path / "mine.py").write_text(MINE)
    with pytest.raises(ConfigError, match=r"^again\.py:\d+: there is a recipe 'rounded' already"):
        register_files(tmp_path, ["mine.py", "again.py"])


def test_changed_code_is_another_recipe(tmp_path: Path) -> None:
    registered(tmp_path, MINE)
    before = find("rounded").code
    registered(tmp_path, MINE + "# changed\n")
    assert before != find("rounded").code != "" == find("fp32").code


def test_files_of_a_project_import_each_other(tmp_path: Path) -> None:
    (tmp_path / "steps_of_mine.py").write_text("STEP = 0.25\n")
    changed = MINE.replace("default=0.01", "default=STEP")
    registered(
        tmp_path,
        changed.replace("import onnx\n", "import onnx\nfrom steps_of_mine import STEP\n", 1),
    )
    artifact = apply(tmp_path, "rounded")
    made = onnx.load(tmp_path / "out" / artifact.entry).graph.initializer
    assert not np.any(numpy_helper.to_array(made[0]) % 0.25)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("def broken(:\n", r"mine\.py:1: SyntaxError: invalid syntax"),
        ("\n\nimport no_such_module\n", r"mine\.py:3: ModuleNotFoundError: No module named 'no_s"),
        ("x = 1\n", r"mine\.py:1: it registers no recipe"),
        (
            BODY
            + '@recipe("fp32", runtimes=("onnxruntime",), precision="fp32", config=RecipeConfig)\n'
            "def own(context, config): ...\n",
            r"mine\.py:2: there is a recipe 'fp32' already",
        ),
        (
            BODY
            + '@recipe("a/b", runtimes=("onnxruntime",), precision="fp32", config=RecipeConfig)\n'
            "def own(context, config): ...\n",
            r"mine\.py:2: a recipe's name is lower-case letters, digits and dashes, not 'a/b'",
        ),
        (
            BODY + '@recipe("own", runtimes=("tflite",), precision="fp32", config=RecipeConfig)\n'
            "def own(context, config): ...\n",
            r"mine\.py:2: recipe 'own' names the runtimes \('tflite',\); known are onnxruntime",
        ),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(ConfigError, match=f"^{line}") as caught:
        registered(tmp_path, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("    return None\n", "own gave None, not an Artifact"),
        ("    return 1 / 0\n", "own: division by zero"),
        (
            "    return Artifact(('onnxruntime',), 'x.onnx', ('x.onnx',), 'fp32')\n",
            "it names the file 'x.onnx', which it did not write",
        ),
        (
            "    (context.directory / 'x.onnx').write_bytes(b'no')\n"
            "    return Artifact(('onnxruntime',), 'x.onnx', ('x.onnx',), 'fp32')\n",
            r"onnxruntime cannot run what it made: x\.onnx: cannot be loaded",
        ),
    ],
)
def test_what_a_recipe_of_a_project_makes_is_checked(tmp_path: Path, body: str, line: str) -> None:
    head = '@recipe("own", runtimes=("onnxruntime",), precision="fp32", config=RecipeConfig)\n'
    registered(tmp_path, BODY + head + "def own(context, config):\n" + body)
    with pytest.raises(RecipeFailed, match=line):
        apply(tmp_path, "own")
    assert list((tmp_path / "out").iterdir()) == []
