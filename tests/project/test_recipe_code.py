"""Recipes of a project: listed, packed, checked, and imported by the child that optimises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cloud.jobs.optimizing import optimize_task
from cloud.project import ProjectError, load_project, pack_project, unpack_project
from cloud.training.arrays import Rows
from optimizer.errors import BadCalibration
from optimizer.passes import find, register_files

YAML = """\
name: tiny
model: tiny
labels: ["left", "right"]
dataset: {load: "data:load"}
family: {build: "data:build", members: {only: {}}}
code: [data.py]
inputs: [{name: x, datatype: FP32, shape: [-1, 2]}]
outputs:
  - {name: scores, datatype: FP32, shape: [-1, 2]}
  - {name: label, datatype: INT64, shape: [-1]}
pipeline: [model, classify]
recipe_code: [recipes/mine.py]
recipes: [fp32, copied]
profiles: {this-machine: {latency_ms: 100}}
"""
DATA = "def load(): ...\n\ndef build(): ...\n"
RECIPE = """\
import shutil
from optimizer.passes import Artifact, RecipeConfig, recipe

@recipe("copied", runtimes=("onnxruntime",), precision="fp32", config=RecipeConfig)
def copied(context, config):
    shutil.copy(context.source, context.directory / "copy.onnx")
    return Artifact(("onnxruntime",), "copy.onnx", ("copy.onnx",), "fp32")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    directory = tmp_path / "tiny"
    (directory / "recipes").mkdir(parents=True)
    for name, text in (("skerry.yaml", YAML), ("data.py", DATA), ("recipes/mine.py", RECIPE)):
        (directory / name).write_text(text)
    return directory


def request(project: Path, directory: Path) -> dict[str, object]:
    x = np.zeros((8, 2), np.float32)
    labels = np.arange(8) % 2
    splits = np.array(["train", "eval", "golden", "train"] * 2)
    directory.mkdir(exist_ok=True)
    Rows({"x": x}, labels, splits).save(directory / "data.npz")
    return {
        "project_dir": str(project), "data": str(directory / "data.npz"), "members": {},
        "parents": {}, "version": 1, "quick": True, "cache_dir": str(directory / "cache"),
    }  # fmt: skip


def test_files_with_recipes_travel_with_the_project(project: Path, tmp_path: Path) -> None:
    unpacked = unpack_project(pack_project(project), tmp_path / "there")
    assert unpacked.recipe_code == ("recipes/mine.py",)
    assert (tmp_path / "there" / "recipes" / "mine.py").read_text() == RECIPE


def test_a_file_that_is_not_there_is_named_with_its_line(project: Path) -> None:
    (project / "recipes" / "mine.py").unlink()
    with pytest.raises(ProjectError, match=r"^skerry\.yaml:12: no file 'recipes/mine\.py'"):
        load_project(project)


@pytest.mark.parametrize("rows", [512, 2000])
def test_calibration_rows_are_of_all_classes_even_where_data_is_sorted(
    project: Path, tmp_path: Path, rows: int
) -> None:
    (project / "skerry.yaml").write_text(YAML.replace("recipe_code: [recipes/mine.py]\n", ""))
    asked = request(project, tmp_path / "job")
    x = np.repeat(np.arange(rows, dtype=np.float32)[:, None], 2, axis=1)
    labels = (np.arange(rows) > 0.9 * rows).astype(np.int64)
    Rows({"x": x}, labels, np.full(rows, "train")).save(tmp_path / "job" / "data.npz")
    task = optimize_task(load_project(project), asked, tmp_path)
    taken = task.calibration["x"][:, 0]
    assert len(taken) == 512
    assert np.count_nonzero(taken > 0.9 * rows) == pytest.approx(51, abs=1)


def test_calibration_rows_of_one_class_are_refused(project: Path, tmp_path: Path) -> None:
    (project / "skerry.yaml").write_text(YAML.replace("recipe_code: [recipes/mine.py]\n", ""))
    asked = request(project, tmp_path / "job")
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    Rows({"x": x}, np.ones(64, np.int64), np.full(64, "train")).save(tmp_path / "job" / "data.npz")
    line = "all 64 calibration rows are of the class 'right': quantisers need rows of every class"
    with pytest.raises(BadCalibration, match=f"^{line}$"):
        optimize_task(load_project(project), asked, tmp_path)


def test_a_search_knows_the_recipes_of_its_project(project: Path, tmp_path: Path) -> None:
    task = optimize_task(load_project(project), request(project, tmp_path / "job"), tmp_path)
    assert [step.name for step in task.recipes] == ["fp32", "copied"]
    assert find("copied").code
    register_files(project, [])


@pytest.mark.slow
def test_the_child_says_what_is_wrong_with_a_recipe_in_one_line(
    project: Path, tmp_path: Path
) -> None:
    (project / "recipes" / "mine.py").write_text(RECIPE.replace("import shutil", "import shutl"))
    job = tmp_path / "job"
    asked = request(project, job)
    (job / "request.json").write_text(json.dumps(asked))
    child = [sys.executable, "-m", "cloud.jobs.child", "optimize", str(job)]
    # it ends with the other end of its standard input, and takes its process group along
    with subprocess.Popen(
        child, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        process.wait(120)
    answer = json.loads((job / "response.json").read_text())
    assert "mine.py:1: ModuleNotFoundError: No module named 'shutl'" in answer["error"]
