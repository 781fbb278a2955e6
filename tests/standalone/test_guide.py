"""The guide's commands on an ONNX file, run as they stand there."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from cloud.cli.main import main
from tests.standalone.networks import network, save_rows

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "optimizing.md"


def blocks(kind: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE.read_text(), re.S | re.M)
    return [text for of, text in found if of == kind]


def skerry(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    with pytest.raises(SystemExit) as leaving:
        main()
    return int(leaving.value.code or 0)


@pytest.mark.slow
def test_the_commands_of_the_guide_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    network(Path("model.onnx"))
    save_rows(Path("rows.npz"))
    recipe = next(block for block in blocks("python") if "# mine.py" in block)
    Path("mine.py").write_text(recipe)
    lines = [line for block in blocks("") for line in block.splitlines()]
    own = next(line for line in lines if "--recipe-code" in line)
    assert skerry(f"{own} --quick", monkeypatch) == 0, capsys.readouterr().err
    page = Path("optimized/report.html").read_text()
    assert "model/mine" in page
    why = next(line for line in lines if "--explain" in line)
    capsys.readouterr()
    assert skerry(why, monkeypatch) == 0
    assert "model/" in capsys.readouterr().out


def test_every_option_of_the_guide_exists(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    skerry("skerry optimize --help", monkeypatch)
    known = capsys.readouterr().out
    other = {"--allow-predicted"}  # of `skerry models publish`
    named = set(re.findall(r"--[a-z][a-z-]+", GUIDE.read_text())) - other
    assert len(named) > 15
    assert [option for option in sorted(named) if option not in known] == []
