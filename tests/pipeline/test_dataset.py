from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from edge_agent.pipeline import Array, DatasetError, Tensors
from edge_agent.pipeline.dataset import BadRow, Dataset, of_arrays, open_dataset
from edge_agent.pipeline.dataset_files import NpzFile
from edge_agent.pipeline.dataset_rows import grouped
from edge_agent.wire.manifest import Datatype, ImageSpec, TensorSpec
from tests.runtime.npz_files import MADE_UP, write


def spec(name: str, datatype: Datatype, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


GRID = spec("grid", "FP32", -1, 2, 3)
TEXT = spec("text", "BYTES", -1)
PHOTO = spec("photo", "UINT8", -1, -1, -1, 3)
IMAGE = ImageSpec(input="photo")


def grids(count: int) -> Array:
    return np.arange(count * 6, dtype=np.float32).reshape(count, 2, 3)


def read(dataset: Dataset, size: int = 4) -> tuple[list[str], Tensors, list[int]]:
    """All ids, all rows joined, and the sizes of the batches."""
    batches = list(dataset.batches(size))
    names = batches[0].tensors if batches else {}
    joined = {name: np.concatenate([batch.tensors[name] for batch in batches]) for name in names}
    return [i for batch in batches for i in batch.ids], joined, [len(batch) for batch in batches]


def parquet(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def lines(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def picture(width: int = 4, value: int = 7) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((3, width, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def in_every_form(directory: Path, rows: Array, ids: list[str]) -> dict[str, Path]:
    np.savez(directory / "plain.npz", grid=rows, id=np.array(ids))
    np.savez_compressed(directory / "packed.npz", **{"input:grid": rows}, id=np.array(ids))
    flat = rows.reshape(len(rows), -1)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(rows)
    return {
        "npz": directory / "plain.npz",
        "packed npz": directory / "packed.npz",
        "nested": parquet(directory / "nested.parquet", grid=rows.tolist(), id=ids),
        "flat": parquet(directory / "flat.parquet", grid=flat.tolist(), id=ids),
        "tensor": parquet(directory / "tensor.parquet", grid=tensors, id=ids),
        "jsonl": lines(
            directory / "rows.jsonl",
            *({"grid": row, "id": name} for row, name in zip(rows.tolist(), ids, strict=True)),
        ),
        "requests": lines(
            directory / "requests.jsonl",
            *(
                {"inputs": {"grid": [row]}, "id": name}
                for row, name in zip(rows.tolist(), ids, strict=True)
            ),
        ),
    }


@pytest.mark.parametrize("size", [1, 4, 100])
def test_every_form_gives_the_same_rows_in_order(tmp_path: Path, size: int) -> None:
    ids = [f"row-{number}" for number in range(10)]
    for form, path in in_every_form(tmp_path, grids(10), ids).items():
        dataset = open_dataset(path, (GRID,))
        got, tensors, sizes = read(dataset, size)
        assert got == ids, form
        assert tensors["grid"].dtype == np.float32, form
        np.testing.assert_array_equal(tensors["grid"], grids(10))
        assert max(sizes) == min(size, 10)
        assert dataset.rows == (None if path.suffix == ".jsonl" else 10)
        assert read(dataset, size)[0] == ids  # a second time


def test_rows_without_ids_are_numbered(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", grid=grids(5))
    parquet(tmp_path / "a.parquet", grid=grids(5).tolist())
    lines(tmp_path / "a.jsonl", *({"grid": row} for row in grids(5).tolist()))
    for path in tmp_path.iterdir():
        assert read(open_dataset(path, (GRID,)), 2)[0] == ["0", "1", "2", "3", "4"]


def test_an_id_that_is_null_is_the_row_s_number(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", grid=grids(2).tolist(), id=[None, "b"])
    assert read(open_dataset(path, (GRID,)))[0] == ["0", "b"]


def test_arrays_in_memory_are_a_data_set_too() -> None:
    ids, tensors, sizes = read(of_arrays({"grid": grids(5), "y": grids(1)}, (GRID,)), 2)
    assert (ids, sizes) == (["0", "1", "2", "3", "4"], [2, 2, 1])
    assert list(tensors) == ["grid"]
    named = of_arrays({"grid": grids(2)}, (GRID,), ids=["a", "b"])
    assert read(named)[0] == ["a", "b"]
    with pytest.raises(DatasetError, match="3 ids for 2 rows"):
        of_arrays({"grid": grids(2)}, (GRID,), ids=["a", "b", "c"])
    with pytest.raises(DatasetError, match="different lengths: 'grid' 2, 'text' 1"):
        of_arrays({"grid": grids(2), "text": np.array([b"a"], object)}, (GRID, TEXT))


def test_a_batch_is_a_request() -> None:
    [batch] = of_arrays({"grid": grids(2)}, (GRID,), ids=["a", "b"]).batches(9)
    request = batch.request(debug=True)
    assert (request.id, request.debug, request.tensors is batch.tensors) == ("a", True, True)


def test_numbers_become_the_datatype_where_they_fit() -> None:
    bad: list[BadRow] = []
    byte = spec("x", "UINT8", -1)
    values = np.array([0, 255, 256, -1], np.int64)
    ids, tensors, _ = read(of_arrays({"x": values}, (byte,), on_bad=bad.append))
    assert (ids, tensors["x"].tolist()) == (["0", "1"], [0, 255])
    assert [row.id for row in bad] == ["2", "3"]
    assert bad[0].reason == "input 'x' has a number that UINT8 cannot hold"

    bad.clear()
    single = spec("x", "FP32", -1)
    values = np.array([1.5, 1e300, np.nan])
    ids, tensors, _ = read(of_arrays({"x": values}, (single,), on_bad=bad.append))
    assert ids == ["0", "2"]
    assert tensors["x"].dtype == np.float32
    assert read(of_arrays({"x": np.array([1.5])}, (byte,), on_bad=bad.append))[0] == []
    assert bad[-1].reason == "input 'x' is float64, expected UINT8"


def test_text_becomes_bytes_in_every_form(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", text=np.array(["a", "ü"]))
    parquet(tmp_path / "a.parquet", text=["a", "ü"])
    parquet(tmp_path / "b.parquet", text=[b"a", "ü".encode()])
    lines(tmp_path / "a.jsonl", {"text": "a"}, {"text": "ü"})
    for path in tmp_path.iterdir():
        assert read(open_dataset(path, (TEXT,)))[1]["text"].tolist() == [b"a", "ü".encode()]


def test_a_directory_gives_its_images_by_name(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.PNG").write_bytes(picture(value=2))
    (tmp_path / "a.png").write_bytes(picture(value=1))
    (tmp_path / "c.png").write_bytes(picture(width=5, value=3))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    dataset = open_dataset(tmp_path, (PHOTO,), image=IMAGE)
    batches = list(dataset.batches(8))
    assert [batch.ids for batch in batches] == [("a.png", "b/2.PNG"), ("c.png",)]
    assert [batch.tensors["photo"].shape for batch in batches] == [(2, 3, 4, 3), (1, 3, 5, 3)]
    assert batches[0].tensors["photo"][:, 0, 0, 0].tolist() == [1, 2]
    assert dataset.rows == 3


def test_images_that_cannot_be_used_are_reported(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "b.png").write_bytes(picture()[:40])
    (tmp_path / "c.jpg").write_text("no image")
    os.mkfifo(tmp_path / "d.png")
    bad: list[BadRow] = []
    dataset = open_dataset(tmp_path, (PHOTO,), image=IMAGE, on_bad=bad.append)
    assert read(dataset)[0] == ["a.png"]
    assert [row.id for row in bad] == ["b.png", "c.jpg", "d.png"]
    assert bad[2].reason == "not a file"


def test_parquet_holds_images_as_bytes_or_structs(tmp_path: Path) -> None:
    data = [picture(value=1), b"no image", None, picture(value=2)]
    parquet(tmp_path / "bytes.parquet", photo=data)
    parquet(tmp_path / "structs.parquet", photo=[{"bytes": each, "path": "p"} for each in data])
    for path in tmp_path.iterdir():
        bad: list[BadRow] = []
        dataset = open_dataset(path, (PHOTO,), image=IMAGE, on_bad=bad.append)
        ids, tensors, _ = read(dataset)
        assert ids == ["0", "3"]
        assert tensors["photo"][:, 0, 0, 0].tolist() == [1, 2]
        assert [row.id for row in bad] == ["1", "2"]
        assert bad[1].reason == "input 'photo' holds no image"


def test_bad_rows_of_parquet_are_reported_and_the_others_stay(tmp_path: Path) -> None:
    good = grids(1)[0].tolist()
    short, hole = [[1.0, 2.0, 3.0]], [[1.0, 2.0, None], [1.0, 2.0, 3.0]]
    uneven = [[1.0], [2.0, 3.0]]
    rows = [good, None, short, good, hole, uneven, good]
    path = parquet(tmp_path / "a.parquet", grid=rows)
    bad: list[BadRow] = []
    ids, tensors, _ = read(open_dataset(path, (GRID,), on_bad=bad.append), 100)
    assert ids == ["0", "3", "6"]
    np.testing.assert_array_equal(tensors["grid"], [good] * 3)
    assert [row.id for row in bad] == ["1", "2", "4", "5"]
    assert "null or of uneven lengths" in bad[0].reason
    assert all("\n" not in row.reason for row in bad)


def test_bad_lines_are_reported_and_the_others_stay(tmp_path: Path) -> None:
    good = {"grid": grids(1)[0].tolist()}
    path = lines(
        tmp_path / "a.jsonl",
        good,
        "",
        "{not json",
        {"gird": 1},
        {"grid": [[1, 2, 3], [4, 5, "6"]], "id": "odd"},
        {"grid": grids(2).tolist()},
        {**good, "label": "carried by the file, no input"},
        "[" * 100_000,
    )
    bad: list[BadRow] = []
    assert read(open_dataset(path, (GRID,), on_bad=bad.append))[0] == ["0", "6"]
    assert [row.id for row in bad] == ["2", "3", "odd", "5", "7"]
    assert "input 'grid' is missing" in bad[1].reason
    assert "holds 2 items" in bad[3].reason
    assert all("\n" not in row.reason for row in bad)


def test_a_line_too_long_is_skipped_without_being_held(tmp_path: Path) -> None:
    good = json.dumps({"grid": grids(1)[0].tolist()}).encode()
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(b'{"grid": [')
        for _ in range(3):
            file.write(b"1," * (16 << 20))
        file.write(b"]}\n" + good)
    bad: list[BadRow] = []
    assert read(open_dataset(tmp_path / "a.jsonl", (GRID,), on_bad=bad.append))[0] == ["1"]
    assert "longer than" in bad[0].reason


def test_bad_rows_are_logged_where_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    read(of_arrays({"x": np.array([300])}, (spec("x", "UINT8", -1),)))
    assert "dataset.row_left_out id=0" in caplog.text


def test_a_fixed_batch_is_kept(tmp_path: Path) -> None:
    pair = spec("grid", "FP32", 2, 2, 3)
    bad: list[BadRow] = []
    for path in in_every_form(tmp_path, grids(5), list("abcde")).values():
        bad.clear()
        ids, _, sizes = read(open_dataset(path, (pair,), on_bad=bad.append), 100)
        assert (ids, sizes) == (list("abcd"), [2, 2])
        assert [row.id for row in bad] == ["e"]


def broken(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = b"\xff" * 40
    path.write_bytes(data)
    return path


def test_a_damaged_file_is_an_error_not_an_end(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(500, 2, 3)).astype(np.float32)
    np.savez(tmp_path / "a.npz", grid=rows)
    np.savez_compressed(tmp_path / "b.npz", grid=rows)
    pq.write_table(
        pa.table({"grid": rows.reshape(500, 6).tolist()}),
        tmp_path / "c.parquet",
        write_page_checksum=True,
    )
    for path in tmp_path.iterdir():
        read(open_dataset(path, (GRID,)))
        with pytest.raises(DatasetError, match=path.name):
            read(open_dataset(broken(path), (GRID,), on_bad=lambda row: None))


@pytest.mark.parametrize("kind", MADE_UP)
def test_an_archive_that_is_damaged_or_made_up_is_refused_in_one_line(
    kind: str, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=r"^made_up\.npz: .") as caught:
        read(open_dataset(write(tmp_path, kind), (GRID,)))
    assert "\n" not in str(caught.value)


def test_names_that_no_encoding_has_are_escaped(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / os.fsdecode(b"\xff.png")).write_bytes(picture())
    dataset = open_dataset(tmp_path / "images", (PHOTO,), image=IMAGE)
    assert read(dataset)[0] == ["\\udcff.png"]
    np.savez(tmp_path / "a.npz", grid=grids(2), id=np.array(["a\ud800", "b"]))
    assert read(open_dataset(tmp_path / "a.npz", (GRID,)))[0] == ["a\\ud800", "b"]


def test_text_that_is_no_unicode_is_a_bad_row(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", text=np.array(["a", "b\ud800"]))
    bad: list[BadRow] = []
    assert read(open_dataset(tmp_path / "a.npz", (TEXT,), on_bad=bad.append))[0] == ["0"]
    assert bad == [BadRow("1", "input 'text' holds text that is no Unicode")]


@pytest.mark.parametrize("name", ["grid", "id"])
def test_a_column_that_is_there_twice_is_refused(name: str, tmp_path: Path) -> None:
    columns = [pa.array(grids(2).tolist()), pa.array(grids(2).tolist())]
    names = [name, name] if name == "grid" else ["grid", "id", "id"]
    pq.write_table(
        pa.table([columns[0], *columns][: len(names)], names=names), tmp_path / "a.parquet"
    )
    with pytest.raises(DatasetError, match=f"a.parquet: has the column '{name}' 2 times"):
        open_dataset(tmp_path / "a.parquet", (GRID,))


@pytest.mark.parametrize(
    ("name", "arrays", "message"),
    [
        ("a.npz", {"gird": grids(1)}, "input 'grid' is missing; there is 'gird'"),
        ("a.npz", {"grid": grids(1)[0]}, r"rows of 'grid' have shape \[3\], expected \[2, 3\]"),
        ("a.npz", {"grid": np.zeros((1, 2, 3), complex)}, "is complex128, expected FP32"),
        ("a.npz", {"grid": grids(2), "id": np.array(["a"])}, "'grid' 2, 'id' 1"),
        ("a.npz", {"grid": np.asfortranarray(grids(2))}, "save np.ascontiguousarray"),
        ("a.npz", {"grid": np.float32(1)}, "single value, not rows"),
        ("a.npz", {"grid": np.array([None])}, "pickled"),
        ("a.npz", {"grid": np.zeros((9, 2, 0), "f4")}, "empty rows"),
    ],
)
def test_an_npz_that_does_not_fit_is_refused_before_a_row_is_read(
    tmp_path: Path, name: str, arrays: Tensors, message: str
) -> None:
    np.savez(tmp_path / name, **arrays)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match=message) as caught:
        open_dataset(tmp_path / name, (GRID,))
    assert "\n" not in str(caught.value)


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    for name in ("a.npz", "a.parquet", "a.csv"):
        (tmp_path / name).write_text("nothing of the kind")
        with pytest.raises(DatasetError, match=name):
            open_dataset(tmp_path / name, (GRID,))
    with pytest.raises(DatasetError, match="no such file or directory"):
        open_dataset(tmp_path / "nowhere", (GRID,))
    with pytest.raises(DatasetError, match="input 'grid' is missing; there is 'x'"):
        open_dataset(parquet(tmp_path / "b.parquet", x=[1]), (GRID,))
    with pytest.raises(DatasetError, match="the model takes no image alone"):
        open_dataset(tmp_path, (GRID,))
    with pytest.raises(DatasetError, match="holds no images"):
        open_dataset(tmp_path, (PHOTO,), image=IMAGE)
    with pytest.raises(ValueError, match="at least one row"):
        list(of_arrays({"grid": grids(1)}, (GRID,)).batches(0))


def test_a_large_file_is_not_held_in_memory(tmp_path: Path) -> None:
    rows = np.zeros((20_000, 1000), np.float32)  # 80 MB
    wide = spec("x", "FP32", -1, 1000)
    np.savez_compressed(tmp_path / "a.npz", x=rows)
    del rows
    tracemalloc.start()
    try:
        count = sum(len(batch) for batch in open_dataset(tmp_path / "a.npz", (wide,)).batches(64))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 20_000
    assert peak_bytes < 4_000_000


def test_a_batch_is_bounded_in_bytes_too(tmp_path: Path) -> None:
    rows = np.zeros((5, 5_000_000), np.uint8)
    wide = spec("x", "UINT8", -1, 5_000_000)
    np.savez_compressed(tmp_path / "a.npz", x=rows)
    items = ((str(row), {"x": rows[row : row + 1]}) for row in range(5))
    assert [len(batch) for batch in grouped(items, 64, max_bytes=12_000_000)] == [2, 2, 1]
    lean = NpzFile(tmp_path / "a.npz", (wide,), max_batch_bytes=12_000_000)
    assert [len(chunk) for chunk in lean.chunks(64, lambda row: None)] == [2, 2, 1]


def test_without_pyarrow_the_error_says_what_to_install(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", grid=grids(1).tolist())
    code = """
import sys
from pathlib import Path
sys.modules["pyarrow"] = None
from edge_agent.pipeline import DatasetError
from edge_agent.pipeline.dataset import open_dataset
from edge_agent.wire.manifest import TensorSpec
try:
    open_dataset(Path(sys.argv[1]), [TensorSpec(name="x", datatype="FP32", shape=(-1,))])
except DatasetError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("install skerry-agent[parquet]")
