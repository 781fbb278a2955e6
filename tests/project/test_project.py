"""The project file: what is accepted, and which line is blamed for what is not."""

# ruff: noqa: E501 (a table of mistakes and complaints)

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from cloud.project import (
    MAX_PROJECT_BYTES,
    ProjectError,
    RetrainSpec,
    load_project,
    pack_project,
    read_packed,
    unpack_project,
)
from cloud.retrain import RetrainPolicy

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the example that a test may break."""
    directory = tmp_path / "digits"
    directory.mkdir()
    for name in ("skerry.yaml", "data.py", "family.py", "steps.py"):
        shutil.copy(DIGITS / name, directory / name)
    return directory


def change(project: Path, old: str, new: str, file: str = "skerry.yaml") -> int:
    """Replace text once; returns the line where it stands."""
    path = project / file
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file}"
    path.write_text(text.replace(old, new))
    return text[: text.index(old)].count("\n") + 1


def refusal(project: Path) -> str:
    with pytest.raises(ProjectError) as caught:
        load_project(project)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_the_example_is_accepted() -> None:
    project = load_project(DIGITS)
    assert [step.name for step in project.pipeline][-2:] == ["model", "classify"]
    assert project.pipeline[1].config == {"min": 0, "max": 16}
    assert list(project.family.members) == ["small", "large"]
    assert project.gate_spec.metric == project.metrics.primary


def test_the_retrain_section_is_the_policys() -> None:
    assert RetrainSpec().model_dump() == RetrainPolicy().model_dump()
    for name, field in RetrainPolicy.model_fields.items():
        assert RetrainSpec.model_fields[name].metadata == field.metadata


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("build: family:build", "build: family:buld", "no function 'buld' in family.py; did you mean 'build'"),
        ("load: data:load", "load: dat:load", "module 'dat' is not listed under code; did you mean 'data'?"),
        ("steps: [steps.py]", "steps: [step.py]", "no file 'step.py'; did you mean 'steps.py'?"),
        ("  - digits.prepare", "  - digits.prepair", "no step 'digits.prepair'; did you mean 'digits.prepare'?"),
        ("{least: 8}", "{leest: 8}", "step 'digits.ink' has no key 'leest'; did you mean 'least'?"),
        ("{min: 0, max: 16}", "{min: 0, mx: 16}", "step 'check.range': unknown key 'mx'; did you mean 'max'?"),
        ("  - model", "  - classify", "pipeline: the step 'model' must stand there once"),
        ("  this-machine:", "  this-machin:", "no hardware profile 'this-machin'; did you mean 'this-machine'?"),
        ("metrics:", "metriks:", "unknown key 'metriks'; did you mean 'metrics'?"),
        ('recall_floors: {"0": 0.8}', 'recall_floors: {"zero": 0.8}', "no label 'zero'"),
        ('"8", "9"]', '"8", "8"]', "labels: '8' is listed twice"),
        ("shape: [-1, 8, 8]", "shape: [1, 8, 8]", "shape of 'image': the first axis is rows, -1"),
        ("seed: 7}", "seed: seven}", "training.seed"),
        ("metrics: {", "image: {input: imag, mode: L}\nmetrics: {", "no input 'imag'; did you mean 'image'?"),
        ("metrics: {", "image: {input: image, mode: RGB}\nmetrics: {", "[-1, height, width, 3], 'image' is FP32 [-1, 8, 8]"),
        ("metrics: {", "image: {input: image, mod: L}\nmetrics: {", "unknown key 'mod'; did you mean 'mode'?"),
        ("large: {channels: 32, hidden: 128}", "large: {channels: 32}\n  search: {channels: [8]}", "family.search: no parameter has several values"),
        ("large: {channels: 32, hidden: 128}", "large: {}\n  search: {channels: [8, 8]}", "two combinations are named 'channels8'"),
        ("large: {channels: 32, hidden: 128}", "large: {}\n  serch: {channels: [8, 9]}", "unknown key 'serch'; did you mean 'search'?"),
        ("epochs: 14,", "halving: {keep: 0.99},", "training.halving.keep: input should be less than or equal to 0.9, not 0.99"),
        ("metrics: {", "derive: [prun]\nmetrics: {", "unknown derivation 'prun'; did you mean 'prune'?"),
        ("metrics: {", "derive: [{prune: {shar: 0.5}}]\nmetrics: {", "derivation 'prune': shar"),
        ("metrics: {", "derive: [{distil: {members: [smal]}}]\nmetrics: {", "no member 'smal'; did you mean 'small'?"),
    ],
)  # fmt: skip
def test_a_mistake_is_blamed_on_its_line(project: Path, old: str, new: str, complaint: str) -> None:
    line = change(project, old, new)
    text = refusal(project)
    assert complaint in text
    line += new.count("serch") + new.count("search")  # stands on the line after
    if "pipeline: the step" not in complaint:
        assert text.startswith(f"skerry.yaml:{line}: ")


def test_a_family_may_be_a_grid_that_is_raced_and_derived_from(project: Path) -> None:
    change(
        project, "large: {channels: 32, hidden: 128}", "large: {}\n  search: {channels: [8, 16]}"
    )
    change(project, "metrics: {", "derive: [distil, prune: {share: 0.5}]\nmetrics: {")
    loaded = load_project(project)
    names = [member.name for member in loaded.family.all()]
    assert names == ["small", "large", "channels8", "channels16"]
    assert loaded.halving is not None and loaded.halving.rungs(14) == (2, 4, 8, 14)
    assert [(step.name, step.config) for step in loaded.derive] == [
        ("distil", {}), ("prune", {"share": 0.5}),
    ]  # fmt: skip


def test_members_that_are_written_down_race_only_where_asked(project: Path) -> None:
    assert load_project(project).halving is None
    change(project, "epochs: 14,", "epochs: 14, halving: {first_epochs: 3},")
    halving = load_project(project).halving
    assert halving is not None and halving.first_epochs == 3


def test_a_model_may_take_images(project: Path) -> None:
    change(project, "metrics: {", "image: {input: image, mode: L}\nmetrics: {")
    image = load_project(project).image
    assert image is not None and (image.input, image.mode) == ("image", "L")


def test_a_file_that_python_cannot_parse_is_named_with_its_line(project: Path) -> None:
    line = change(project, "def load(", "def load((", file="data.py")
    assert f"data.py:{line}: " in refusal(project)


def test_nothing_of_a_project_is_executed_by_checking_it(project: Path) -> None:
    change(project, "import numpy as np", "raise SystemExit(3)", file="data.py")
    read_packed(pack_project(project))


def test_equal_files_pack_to_equal_bytes(project: Path) -> None:
    first = pack_project(project)
    (project / "data.py").touch()
    (project / "notes.txt").write_text("not part of the project")
    assert pack_project(project) == first


def test_a_packed_project_unpacks_to_the_same_project(project: Path, tmp_path: Path) -> None:
    assert unpack_project(pack_project(project), tmp_path / "out") == load_project(project)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "data.py", "family.py", "skerry.yaml", "steps.py",
    ]  # fmt: skip


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["../outside.py", "/tmp/outside.py", "a/../../outside.py"])
def test_a_tar_cannot_write_outside_of_its_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProjectError, match="no plain file"):
        unpack_project(tar_of((tarfile.TarInfo(name), b"x")), tmp_path / "in")
    assert not (tmp_path / "outside.py").exists()


def test_a_tar_cannot_plant_links(tmp_path: Path) -> None:
    link = tarfile.TarInfo("skerry.yaml")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with pytest.raises(ProjectError, match="no plain file"):
        unpack_project(tar_of((link, b"")), tmp_path / "in")


def test_bytes_that_are_no_tar_are_refused() -> None:
    with pytest.raises(ProjectError):
        read_packed(b"not a tar" * 100)


def test_a_tar_that_holds_too_much_is_refused(tmp_path: Path) -> None:
    many = [(tarfile.TarInfo(f"f{index}.py"), b"") for index in range(300)]
    with pytest.raises(ProjectError, match="too much"):
        unpack_project(tar_of(*many), tmp_path / "many")
    with pytest.raises(ProjectError, match="exceeds"):
        unpack_project(b"\0" * (MAX_PROJECT_BYTES + 2 * 1024 * 1024), tmp_path / "large")
