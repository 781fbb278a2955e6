from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from edge_agent.pipeline import (
    Array,
    CodeNotLoadable,
    DuplicateStep,
    Pipeline,
    Tensors,
    UnknownStep,
    load_code,
    processor,
    registered,
)
from edge_agent.pipeline.code import execute
from edge_agent.runtime import Provenance, SessionError
from edge_agent.wire.manifest import StepSpec, TensorSpec
from tests.runtime.networks import write_bundle

X = TensorSpec(name="x", datatype="FP64", shape=(-1,))


class Same:
    """A session that gives back what it gets."""

    provenance = Provenance("none", "0", "CPU", "fp32", 1)

    def run(self, tensors: Mapping[str, Array]) -> Tensors:
        return dict(tensors)

    def close(self) -> None:
        pass


def write(path: Path, source: str) -> Path:
    path.write_text("from edge_agent.pipeline import processor, checker\n" + source)
    return path


def adding(path: Path, amount: int) -> Path:
    return write(
        path,
        f"@processor('test.add')\ndef add(tensors):\n    return {{'x': tensors['x'] + {amount}}}\n",
    )


def answer(pipeline: Pipeline) -> float:
    return float(pipeline.run({"x": np.zeros(1)}).tensors["x"][0])


def make(scope: str) -> Pipeline:
    steps = (StepSpec(name="test.add"), StepSpec(name="model"))
    return Pipeline(steps, Same(), (X,), (X,), scope=scope)


def test_steps_of_a_scope_are_seen_in_it_only(tmp_path: Path) -> None:
    load_code([adding(tmp_path / "steps.py", 1)], "scope-a")
    assert "test.add" in registered("scope-a")
    assert "test.add" not in registered("scope-b")
    assert "classify" in registered("scope-a")


def test_a_pipeline_keeps_its_functions_when_newer_code_is_loaded(tmp_path: Path) -> None:
    load_code([adding(tmp_path / "steps.py", 1)], "scope-swap")
    old = make("scope-swap")
    load_code([adding(tmp_path / "steps.py", 2)], "scope-swap")
    new = make("scope-swap")
    assert (answer(old), answer(new)) == (1, 2)


def test_two_scopes_have_steps_of_the_same_name(tmp_path: Path) -> None:
    load_code([adding(tmp_path / "a.py", 1)], "scope-one")
    load_code([adding(tmp_path / "b.py", 2)], "scope-two")
    assert (answer(make("scope-one")), answer(make("scope-two"))) == (1, 2)


def test_what_the_newer_code_no_longer_registers_is_gone(tmp_path: Path) -> None:
    load_code([adding(tmp_path / "steps.py", 1)], "scope-gone")
    load_code([write(tmp_path / "steps.py", "")], "scope-gone")
    assert "test.add" not in registered("scope-gone")


def test_a_later_file_imports_an_earlier_one(tmp_path: Path) -> None:
    write(tmp_path / "numbers_of_ours.py", "AMOUNT = 5\n")
    write(
        tmp_path / "steps.py",
        "from .numbers_of_ours import AMOUNT\n"
        "@processor('test.add')\ndef add(tensors):\n    return {'x': tensors['x'] + AMOUNT}\n",
    )
    load_code([tmp_path / "numbers_of_ours.py", tmp_path / "steps.py"], "scope-relative")
    assert answer(make("scope-relative")) == 5


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def broken(:\n", r"steps\.py:2: "),
        ("\n\n1 / 0\n", r"steps\.py:4: ZeroDivisionError: division by zero"),
        ("import no_such_module_here\n", r"steps\.py:2: ModuleNotFoundError"),
        (
            "@processor('a.b')\ndef one(t): ...\n@processor('a.b')\ndef two(t): ...\n",
            r"steps\.py: step 'a\.b' is registered twice",
        ),
        ("@processor('model')\ndef one(t): ...\n", "'model' is the network's own"),
    ],
)
def test_code_that_does_not_run_names_its_line_and_changes_nothing(
    source: str, message: str, tmp_path: Path
) -> None:
    load_code([adding(tmp_path / "steps.py", 1)], "scope-broken")
    modules = set(sys.modules)
    with pytest.raises(CodeNotLoadable, match=message):
        load_code([write(tmp_path / "steps.py", source)], "scope-broken")
    assert "test.add" in registered("scope-broken")
    assert {name for name in set(sys.modules) - modules if "skerry_steps" in name} == set()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CodeNotLoadable, match=r"^steps\.py: No such file"):
        load_code([tmp_path / "steps.py"], "scope-missing")


def test_old_generations_are_forgotten(tmp_path: Path) -> None:
    for amount in range(6):
        load_code([adding(tmp_path / "only_here.py", amount)], "scope-many")
    assert len([name for name in sys.modules if name.endswith(".only_here")]) == 1


def test_a_plain_import_may_be_repeated_but_not_replace_a_built_in() -> None:
    def again(tensors: Tensors) -> Tensors:
        return tensors

    processor("test.twice")(again)
    processor("test.twice")(again)
    with pytest.raises(DuplicateStep, match="'scale' is registered twice"):
        processor("scale")(again)


def test_a_project_may_shadow_a_built_in_in_its_own_scope(tmp_path: Path) -> None:
    load_code(
        [write(tmp_path / "s.py", "@processor('scale')\ndef mine(t): return t\n")], "scope-shadow"
    )
    assert registered("scope-shadow")["scale"] is not registered()["scale"]


def packages() -> set[str]:
    return {name for name in sys.modules if name.startswith("_skerry_steps")}


def lazy(directory: Path, amount: int) -> Path:
    """A step file that imports its neighbour only when it answers."""
    write(directory / "neighbour.py", f"AMOUNT = {amount}\n")
    return write(
        directory / "steps.py",
        "@processor('test.add')\ndef add(tensors):\n"
        "    from .neighbour import AMOUNT\n    return {'x': tensors['x'] + AMOUNT}\n",
    )


def own(directory: Path, amount: int) -> Pipeline:
    steps = (StepSpec(name="test.add"), StepSpec(name="model"))
    files = [directory / "neighbour.py", lazy(directory, amount)]
    return Pipeline(steps, Same(), (X,), (X,), code=execute(files, "lazy"))


def test_a_pipeline_that_serves_finds_its_code_whatever_is_tried_beside_it(tmp_path: Path) -> None:
    before = packages()
    serving = own(tmp_path, 1)
    for amount in range(2, 6):
        tried = own(tmp_path, amount)
        assert answer(tried) == amount
        tried.close()
    assert answer(serving) == 1
    serving.close()
    serving.close()
    assert packages() == before


def test_replaced_code_of_a_scope_stays_while_a_pipeline_is_made_of_it(tmp_path: Path) -> None:
    paths = [tmp_path / "neighbour.py", lazy(tmp_path, 1)]
    load_code(paths, "scope-held")
    held = packages()
    old = make("scope-held")
    for amount in (2, 3):
        lazy(tmp_path, amount)
        load_code(paths, "scope-held")
    assert answer(old) == 1
    old.close()
    with pytest.raises(UnknownStep):
        Pipeline((StepSpec(name="lost"),), Same(), (X,), (X,), scope="scope-held")
    lazy(tmp_path, 4)
    load_code(paths, "scope-held")
    assert len(packages()) == len(held)


def test_a_bundle_that_does_not_open_leaves_no_code_behind(tmp_path: Path) -> None:
    before = packages()
    manifest = write_bundle(tmp_path, code={"steps.py": "A = 1\n"})
    Pipeline.open(tmp_path, manifest).close()
    with pytest.raises(UnknownStep):
        Pipeline.open(tmp_path, manifest.model_copy(update={"pipeline": (StepSpec(name="lost"),)}))
    (tmp_path / "model.onnx").write_bytes(b"no network")
    with pytest.raises(SessionError):
        Pipeline.open(tmp_path, manifest)
    assert packages() == before


def test_a_step_file_that_ends_the_interpreter_does_not_load(tmp_path: Path) -> None:
    with pytest.raises(CodeNotLoadable, match=r"steps\.py:3: SystemExit: 0"):
        load_code([write(tmp_path / "steps.py", "import sys\nsys.exit(0)\n")], "scope-exit")
