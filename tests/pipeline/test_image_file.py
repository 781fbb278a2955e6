from __future__ import annotations

import io
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from edge_agent.pipeline import InputError
from edge_agent.pipeline.errors import BadImage, ImageTooLarge, TaskError
from edge_agent.pipeline.image_file import SUFFIXES
from edge_agent.pipeline.task import decode_image
from edge_agent.wire.manifest import ImageSpec, TensorSpec

RGB = TensorSpec(name="photo", datatype="UINT8", shape=(-1, -1, -1, 3))
GREY = TensorSpec(name="photo", datatype="FP32", shape=(-1, -1, -1))
COLOUR = ImageSpec(input="photo")
MONO = ImageSpec(input="photo", mode="L")


def gradient(height: int = 4, width: int = 6) -> np.ndarray:
    return np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3) * 3


def encoded(array: np.ndarray, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, form, **options)  # type: ignore[arg-type]
    return file.getvalue()


@pytest.mark.parametrize("form", ["PNG", "BMP"])
def test_pixels_arrive_as_they_are(form: str) -> None:
    tensors = decode_image(encoded(gradient(), form), COLOUR, RGB)
    assert list(tensors) == ["photo"]
    assert tensors["photo"].dtype == np.uint8
    np.testing.assert_array_equal(tensors["photo"], gradient()[None])


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "GIF"])
def test_lossy_forms_are_read(form: str) -> None:
    assert decode_image(encoded(gradient(), form), COLOUR, RGB)["photo"].shape == (1, 4, 6, 3)


def test_grey_is_one_channel_and_float_keeps_the_range() -> None:
    grey = gradient()[..., 0]
    tensors = decode_image(encoded(grey), MONO, GREY)
    assert tensors["photo"].dtype == np.float32
    np.testing.assert_array_equal(tensors["photo"], grey[None].astype(np.float32))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_modes_are_converted(mode: str) -> None:
    file = io.BytesIO()
    Image.fromarray(gradient()).convert(mode).save(file, "JPEG" if mode == "CMYK" else "PNG")
    assert decode_image(file.getvalue(), COLOUR, RGB)["photo"].shape == (1, 4, 6, 3)
    assert decode_image(file.getvalue(), MONO, GREY)["photo"].shape == (1, 4, 6)


def test_a_palette_with_transparency_is_read() -> None:
    file = io.BytesIO()
    picture = Image.fromarray(gradient()).convert("P")
    picture.save(file, "PNG", transparency=bytes(range(256)))
    assert decode_image(file.getvalue(), COLOUR, RGB)["photo"].shape == (1, 4, 6, 3)


def test_the_picture_stands_as_its_orientation_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90° clockwise to view
    data = encoded(gradient(), "PNG", exif=exif)
    array = decode_image(data, COLOUR, RGB)["photo"]
    np.testing.assert_array_equal(array[0], np.rot90(gradient(), k=-1))


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    data = encoded(np.zeros((100, 101), np.uint8))
    cut = data[: data.index(b"IDAT") + 4]  # nothing to decode is there
    small = MONO.model_copy(update={"max_pixels": 10_000})
    with pytest.raises(ImageTooLarge, match="101×100 pixels, allowed are 10000"):
        decode_image(cut, small, GREY)


def test_a_bomb_is_refused_by_its_header() -> None:
    for action in ("error", "ignore"):
        with warnings.catch_warnings():
            warnings.simplefilter(action, Image.DecompressionBombWarning)  # type: ignore[arg-type]
            with pytest.raises(ImageTooLarge):
                decode_image(headed(60_000, 60_000), MONO, GREY)


def headed(width: int, height: int) -> bytes:
    """A PNG that says it has this size, and holds one pixel."""
    data = bytearray(encoded(np.zeros((1, 1), np.uint8)))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def test_a_large_image_is_refused_without_a_warning_of_pillow() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(ImageTooLarge, match="12000×8000 pixels, allowed are"):
            decode_image(headed(12_000, 8_000), MONO, GREY)
    assert seen == []


def test_a_format_whose_tiles_may_exceed_the_picture_is_not_taken() -> None:
    with pytest.raises(BadImage, match="no image of a known format"):
        decode_image(encoded(gradient(), "TIFF"), COLOUR, RGB)
    assert not {".tif", ".tiff"} & SUFFIXES


def scanned(times: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = encoded(gradient(64, 64), "JPEG", progressive=True)
    end = data.rindex(b"\xff\xd9")
    return data[:end] + data[data.rindex(b"\xff\xda") : end] * times + data[end:]


def test_a_jpeg_of_too_many_scans_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert decode_image(scanned(50), COLOUR, RGB)["photo"].shape == (1, 64, 64, 3)
    images = (scanned(100), scanned(5000), scanned(100)[:-2])
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("was decoded"))
    for data in images:
        with pytest.raises(BadImage, match="more than 100 scans"):
            decode_image(data, COLOUR, RGB)


def test_what_looks_like_scans_in_a_preview_or_behind_the_end_counts_for_nothing() -> None:
    many = b"\xff\xda\x00\x02" * 500
    data = encoded(gradient(64, 64), "JPEG", comment=many) + many
    assert decode_image(data, COLOUR, RGB)["photo"].shape == (1, 64, 64, 3)


def test_sixteen_bits_are_refused_rather_than_clipped() -> None:
    with pytest.raises(BadImage, match="'I;16'; 8 bits per channel"):
        decode_image(encoded(np.full((2, 2), 40_000, np.uint16)), MONO, GREY)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image at all",
        encoded(gradient())[:45],
        encoded(gradient(64, 64), "JPEG")[:-300],
        encoded(gradient()).replace(b"IDAT", b"IDAX"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n",
    ],
)
def test_what_is_no_image_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(TaskError) as caught:
        decode_image(data, COLOUR, RGB)
    assert "\n" not in str(caught.value)


def test_every_truncation_is_an_image_or_a_typed_error() -> None:
    for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP"):
        data = encoded(gradient(), form)
        for length in range(0, len(data), 7):
            try:
                decode_image(data[:length], COLOUR, RGB)
            except TaskError as error:
                assert "\n" not in str(error)


def test_an_image_of_another_size_is_the_interface_s_error() -> None:
    fixed = RGB.model_copy(update={"shape": (-1, 8, 8, 3)})
    with pytest.raises(InputError, match=r"shape \[1, 4, 6, 3\], expected \[-1, 8, 8, 3\]"):
        decode_image(encoded(gradient()), COLOUR, fixed)


def test_without_pillow_the_error_says_what_to_install() -> None:
    code = """
import sys
sys.modules["PIL"] = None
from edge_agent.pipeline.errors import ImagesUnavailable
from edge_agent.pipeline.task import decode_image
from edge_agent.wire.manifest import ImageSpec, TensorSpec
try:
    decode_image(b"", ImageSpec(input="x"), TensorSpec(name="x", datatype="UINT8", shape=(1,)))
except ImagesUnavailable as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("install skerry-agent[image]")
