"""`skerry optimize` on a project: trained once, searched without a control plane."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloud.errors import Conflict, UserError
from cloud.project import load_project
from cloud.standalone.output_directory import open_output
from cloud.standalone.project import search_project
from cloud.standalone.searching import Wishes
from optimizer.task import OptimizeResult
from tests.jobs.conftest import TINY_DATA, Tiny

OTHER = "profiles: {this-machine: {latency_ms: 100, percentile: 0.9}, generic-x86-64: {}}"


class Watch:
    """Progress as somebody saw it."""

    def __init__(self) -> None:
        self.shares: list[float] = []
        self.texts: list[str] = []

    def __call__(self, share: float, text: str, left_s: float | None = None) -> None:
        self.shares.append(share)
        self.texts.append(text)


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    tiny = Tiny(tmp_path / "tiny")
    text = "profiles: {this-machine: {latency_ms: 100, percentile: 0.9}}"
    tiny.write(yaml=(text, OTHER))
    return tiny


def search(
    tiny: Tiny, out: Path, wishes: Wishes | None = None, watch: Watch | None = None
) -> OptimizeResult:
    project = load_project(tiny.directory)
    with open_output(out) as output:
        return search_project(tiny.directory, project, wishes or Wishes(), output, watch or Watch())


@pytest.mark.slow
def test_a_project_is_trained_once_and_searched_as_wished(tiny: Tiny, tmp_path: Path) -> None:
    out, watch = tmp_path / "out", Watch()
    result = search(tiny, out, Wishes(profiles=("this-machine",)), watch)
    assert result.selected == {"this-machine": "only/fp32"}
    assert result.quick
    assert (out / "bundles" / "this-machine" / "only-fp32" / "manifest.json").exists()
    assert json.loads((out / "report.json").read_text())["selected"] == result.selected
    assert watch.shares == sorted(watch.shares)
    assert any(text.startswith("train:only") for text in watch.texts)
    built = tiny.calls().count("build")

    again = search(tiny, out, Wishes(profiles=("generic-x86-64",)))
    assert set(again.budgets) == {"generic-x86-64"}
    assert tiny.calls().count("build") == built, "the member was trained before"
    assert not (out / "bundles" / "this-machine").exists()


@pytest.mark.slow
def test_what_is_wrong_with_the_data_is_one_line(tiny: Tiny, tmp_path: Path) -> None:
    tiny.write(data=TINY_DATA.replace('np.where(x[:, 0] < 0, "left", "right")', '["left"] * 400'))
    with pytest.raises(UserError, match="no row has the label 'right'") as refused:
        search(tiny, tmp_path / "out")
    assert "\n" not in str(refused.value)


def test_an_output_is_held_by_one_search_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        open_output(out),
        pytest.raises(Conflict, match="another search"),
        open_output(out),
    ):
        pass
    with open_output(out):
        pass


def test_a_new_search_keeps_the_cache_and_nothing_else(tmp_path: Path) -> None:
    with open_output(tmp_path / "out") as output:
        output.clear()
        for place in (output.bundles / "p", output.search_cache):
            place.mkdir(parents=True)
        (output.root / "report.html").write_text("old")
        output.clear()
        assert output.search_cache.exists()
        assert not output.bundles.exists()
        assert not (output.root / "report.html").exists()
        assert output.work.is_dir()
