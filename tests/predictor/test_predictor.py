"""Library use: a bundle answers in the application's own process, as it does on the server."""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edge_agent
from edge_agent import Predictor, PredictorError
from edge_agent.pipeline import InputError, Rejected, StepFailed
from edge_agent.predictor import BundleBroken, NoSuchModel, NothingInstalled, PredictorClosed
from tests.predictor.bundles import BLIND, DARK, LABELS, LIGHT, TOP, install, write_bundle


@pytest.fixture
def bundle(tmp_path) -> Path:
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def agent(tmp_path, bundle) -> Path:
    """Directory of an agent with one committed version."""
    install(tmp_path / "agent", bundle)
    return tmp_path / "agent"


def png(pixels: list[list[int]]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.array(pixels, np.uint8)).save(file, "PNG")
    return file.getvalue()


def state_of(directory: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in sorted(directory.rglob("*"))
    }


@pytest.mark.parametrize("kind", ["bundle", "agent"])
def test_a_bundle_and_an_agents_directory_answer_alike(request, kind):
    with Predictor(request.getfixturevalue(kind)) as predictor:
        assert (predictor.model, predictor.version, predictor.labels) == ("shades", 1, LABELS)
        outputs = predictor.predict({"image": np.array([DARK, LIGHT, TOP], np.uint8)})
        assert list(outputs) == ["label", "scores"]
        assert outputs["label"].tolist() == [0, 1, 2]
        assert outputs["scores"].shape == (3, 3)


def test_items_and_images_are_answered_as_on_the_task_route(bundle, tmp_path):
    (tmp_path / "light.png").write_bytes(png(LIGHT))
    with Predictor(bundle) as predictor:
        by_list = predictor.predict_items([DARK, LIGHT])
        assert [answer["label"] for answer in by_list] == ["dark", "light"]
        assert predictor.predict_items([{"image": DARK}, {"image": LIGHT}]) == by_list
        assert predictor.predict_items({"image": [DARK, LIGHT]}) == by_list
        assert predictor.predict_items([np.array(DARK, np.uint8)]) == by_list[:1]
        assert predictor.predict_image(png(DARK)) == by_list[0]
        assert predictor.predict_image(tmp_path / "light.png") == by_list[1]
        assert predictor.predict_image(str(tmp_path / "light.png")) == by_list[1]


def test_what_is_wrong_with_a_request_has_the_type_that_the_server_maps(bundle):
    with Predictor(bundle) as predictor:
        with pytest.raises(InputError, match="expected UINT8"):
            predictor.predict({"image": np.zeros((1, 2, 2))})
        with pytest.raises(InputError, match="missing"):
            predictor.predict({})
        with pytest.raises(Rejected, match="out_of_range"):
            predictor.predict_items([BLIND])
        with pytest.raises(InputError, match="nested"):
            predictor.predict_items([1, 2])
        with pytest.raises(InputError, match="no plain values"):
            predictor.predict_items([object()])
        with pytest.raises(InputError):
            predictor.predict_image(b"no image")
        with pytest.raises(OSError, match="No such file"):
            predictor.predict_image("none.png")


@pytest.mark.parametrize(
    "tensors", [{"image": [DARK]}, {"image": None}, {1: np.zeros(1)}, [DARK], None, np.zeros(3)]
)
def test_what_is_no_mapping_of_arrays_is_an_input_error(bundle, tensors):
    with Predictor(bundle) as predictor, pytest.raises(InputError):
        predictor.predict(tensors)


@pytest.mark.parametrize(
    "edit", [lambda a: a.T.copy().T, lambda a: np.repeat(a, 2, axis=1)[:, ::2], np.asfortranarray,
             lambda a: a.astype("O")],
)  # fmt: skip
def test_items_may_be_arrays_of_any_layout(bundle, edit):
    array = edit(np.array(TOP, np.uint8))
    with Predictor(bundle) as predictor:
        assert predictor.predict_items([array])[0]["label"] == "top"
        assert predictor.predict_items({"image": array})[0]["label"] == "top"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_an_image_is_taken_from_any_kind_of_bytes(bundle, kind):
    with Predictor(bundle) as predictor:
        assert predictor.predict_image(kind(png(LIGHT)))["label"] == "light"
        with pytest.raises(InputError, match="a path or bytes, not int"):
            predictor.predict_image(5)


def test_a_version_on_probation_is_left_alone_until_it_is_committed(agent, tmp_path):
    with Predictor(agent, "shades") as predictor:
        install(agent, write_bundle(tmp_path / "second", 2), commit=False)
        assert not predictor.refresh()
        assert predictor.version == 1
        install(agent, tmp_path / "second")
        assert predictor.refresh()
        assert (predictor.version, predictor.refresh()) == (2, False)


def test_a_damaged_update_leaves_the_version_before_in_use(agent, tmp_path):
    with Predictor(agent) as predictor:
        slot = install(agent, write_bundle(tmp_path / "second", 2))
        (slot / "model.onnx").write_bytes(b"broken")
        with pytest.raises(BundleBroken, match=r"model\.onnx differs"):
            predictor.refresh()
        assert predictor.version == 1
        assert predictor.predict_items([DARK])[0]["label"] == "dark"


def test_predictions_go_on_while_versions_change(agent, tmp_path):
    wrong: list[object] = []
    done = threading.Event()
    with Predictor(agent) as predictor:

        def predict() -> None:
            batch = {"image": np.array([LIGHT, TOP], np.uint8)}
            while not done.is_set():
                try:
                    if (labels := predictor.predict(batch)["label"].tolist()) != [1, 2]:
                        wrong.append(labels)
                except Exception as error:
                    wrong.append(error)

        threads = [threading.Thread(target=predict) for _ in range(2)]
        for thread in threads:
            thread.start()
        for version in (2, 3, 4):
            install(agent, write_bundle(tmp_path / f"v{version}", version))
            assert predictor.refresh()
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    with pytest.raises(PredictorClosed):
        predictor.predict({})
    with pytest.raises(PredictorClosed):
        predictor.refresh()
    predictor.close()


def test_a_prediction_under_way_keeps_its_version_and_its_end_gives_the_memory_back(
    agent, tmp_path
):
    batch = {"image": np.array([LIGHT], np.uint8)}
    with Predictor(agent) as predictor:
        with predictor._using() as first:
            install(agent, write_bundle(tmp_path / "second", 2))
            assert predictor.refresh()
            assert first.pipeline.run(batch).tensors["label"].tolist() == [1]
        with pytest.raises(StepFailed):
            first.pipeline.run(batch)
        assert predictor.predict(batch)["label"].tolist() == [1]


def test_nothing_is_written_and_no_lock_stays(agent, tmp_path):
    before = state_of(agent)
    with Predictor(agent) as predictor:
        predictor.predict_items([DARK])
        predictor.refresh()
        assert state_of(agent) == before
        # what the agent does meanwhile is not held up
        with sqlite3.connect(agent / "update" / "state.sqlite", timeout=0) as database:
            database.execute("BEGIN EXCLUSIVE")


def test_a_change_that_a_power_cut_left_half_done_is_undone_first(agent):
    database = agent / "update" / "state.sqlite"
    code = f"""
import os, sqlite3
database = sqlite3.connect({str(database)!r}, isolation_level=None)
database.execute("PRAGMA cache_size = 1")
database.execute("BEGIN IMMEDIATE")
database.execute("DELETE FROM installed")
database.execute("CREATE TABLE filler(data)")
for _ in range(500):
    database.execute("INSERT INTO filler VALUES (randomblob(1000))")
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert database.with_name("state.sqlite-journal").exists()
    with Predictor(agent) as predictor:
        assert predictor.version == 1


def test_several_models_want_a_name(agent, tmp_path):
    install(agent, write_bundle(tmp_path / "other", model="others"))
    with pytest.raises(NoSuchModel, match="name one of: others, shades"):
        Predictor(agent)
    with pytest.raises(NoSuchModel, match="no model 'shade'; there is: others, shades"):
        Predictor(agent, "shade")
    with Predictor(agent, "others") as predictor:
        assert predictor.model == "others"


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda d: shutil.rmtree(d), NothingInstalled, "neither"),
        (lambda d: (d / "manifest.json").unlink(), NothingInstalled, "neither"),
        (lambda d: (d / "manifest.json").write_text("{}"), BundleBroken, "manifest.json"),
        (lambda d: (d / "model.onnx").unlink(), BundleBroken, "model.onnx is missing"),
        (lambda d: (d / "model.onnx").write_bytes(b""), BundleBroken, "model.onnx differs"),
        (lambda d: (d / "golden.npz").write_bytes(b""), BundleBroken, "golden.npz differs"),
    ],
)
def test_what_cannot_be_opened_is_told_in_one_line(bundle, damage, error, message):
    damage(bundle)
    with pytest.raises(error, match=message) as caught:
        Predictor(bundle)
    assert isinstance(caught.value, PredictorError)
    assert "\n" not in str(caught.value)


def test_an_agent_without_a_committed_version_is_told(tmp_path, bundle):
    install(tmp_path / "agent", bundle, commit=False)
    with pytest.raises(NothingInstalled, match="no version is committed yet"):
        Predictor(tmp_path / "agent")
    (tmp_path / "agent" / "update" / "state.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(NothingInstalled, match="not a database"):
        Predictor(tmp_path / "agent")


def test_a_bundle_of_another_model_than_the_one_asked_for_is_refused(bundle):
    with pytest.raises(NoSuchModel, match="'shades'"):
        Predictor(bundle, "digits")


def test_wrong_known_answers_are_noticed_unless_told_not_to_look(bundle):
    from cloud.publish import hash_files
    from edge_agent.pipeline import golden
    from edge_agent.wire.manifest import Manifest

    inputs, outputs = golden.read(bundle / "golden.npz")
    golden.write(bundle / "golden.npz", inputs, {"label": outputs["label"] + 1})
    path = bundle / "manifest.json"
    manifest = Manifest.decode(path.read_bytes()).model_copy(update={"files": ()})
    path.unlink()
    path.write_bytes(manifest.model_copy(update={"files": hash_files(bundle)}).encode())
    with pytest.raises(BundleBroken, match="differs in 3 of 3"):
        Predictor(bundle)
    Predictor(bundle, check_golden=False).close()


def test_importing_the_package_brings_nothing_and_the_predictor_no_server():
    code = (
        "import sys, edge_agent; assert 'numpy' not in sys.modules; "
        "assert 'Predictor' in dir(edge_agent); from edge_agent import Predictor; "
        "print(*[m for m in sys.modules if m.split('.')[:2] in "
        "(['edge_agent', 'serve'], ['edge_agent', 'link'], ['edge_agent', 'device'], ['paho'],"
        " ['httptools'], ['uvloop'], ['tuf'], ['PIL'], ['pyarrow'])])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == ""


def test_exported_names_are_there():
    assert sorted(edge_agent.__all__) == ["Predictor", "PredictorError"]
    assert all(hasattr(edge_agent, name) for name in edge_agent.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Predicto'"):
        edge_agent.Predicto  # noqa: B018


def test_a_directory_that_may_not_be_read_is_told(agent):
    (agent / "update").chmod(0)
    root = os.geteuid() == 0
    if root:  # who may read everything
        os.seteuid(65534)
    try:
        with pytest.raises(NothingInstalled, match="Permission denied"):
            Predictor(agent)
    finally:
        if root:
            os.seteuid(0)
        (agent / "update").chmod(0o700)
