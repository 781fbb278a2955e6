"""An image file, as a camera or an application gives it, becomes a tensor.

Rules:
    * The size is read from the header and held to `ImageSpec.max_pixels` before a pixel is decoded.
      Only formats are taken in which no more than that can be decoded: a tile of a TIFF may be
      larger than its picture.
    * Of a JPEG the scans are counted as well: each costs a pass over the whole picture.
    * The picture stands as its EXIF orientation says; of an animation only the first frame counts.
    * It is decoded and nothing else: scaling and cropping are steps, which training shares.
    * What cannot be shown in 8 bits per channel without a choice of range is refused.

Pillow is imported at the first use: it comes with the extra `skerry-agent[image]`.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from typing import TYPE_CHECKING, Final

import numpy as np

from edge_agent.pipeline.errors import BadImage, ImagesUnavailable, ImageTooLarge
from edge_agent.pipeline.interface import spec_dtype, validate
from edge_agent.runtime.session import Array, Tensors
from edge_agent.wire.manifest import ImageSpec, TensorSpec

if TYPE_CHECKING:
    from PIL import Image

FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
"""The decoders that are tried; Pillow knows dozens more, which no camera needs."""

SUFFIXES: Final = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"))

MAX_SCANS: Final = 100
"""Of a progressive JPEG; encoders write about ten."""

_MARKER: Final = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
"""Of a JPEG, those that have a length behind them, and the end; FF 00 and RSTn belong to a scan."""

_END_OF_IMAGE: Final = 0xD9
_START_OF_SCAN: Final = 0xDA

_warnings_lock = threading.Lock()

_EIGHT_BIT_MODES: Final = frozenset(
    ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
)


def decode_image(data: bytes, image: ImageSpec, spec: TensorSpec) -> Tensors:
    """Decode one image file.

    Args:
        image: which input it fills, in which mode, and how large it may be.
        spec: that input: UINT8 or FP32 (values 0…255), [n, height, width] in mode "L" and
            [n, height, width, 3] in mode "RGB".

    Returns:
        The input's tensor with one item.

    Raises:
        ImagesUnavailable: Pillow is not installed.
        ImageTooLarge: more pixels than `image.max_pixels`.
        BadImage: no image, a damaged one, one with more than 8 bits per channel, or a JPEG of more
            than `MAX_SCANS` scans.
        InputError: it does not fit `spec`.
    """
    array = _pixels(data, image).astype(spec_dtype(spec), copy=False)
    tensors: Tensors = {spec.name: array[None]}
    validate(tensors, (spec,))
    return tensors


def _pixels(data: bytes, image: ImageSpec) -> Array:
    """uint8 [height, width] or [height, width, 3]."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise ImagesUnavailable(
            "images cannot be decoded here: install skerry-agent[image]"
        ) from error
    try:
        with _opened(data) as opened:
            width, height = opened.size
            if width * height > image.max_pixels:
                raise ImageTooLarge(
                    f"the image has {width}×{height} pixels, allowed are {image.max_pixels}"
                )
            if opened.mode not in _EIGHT_BIT_MODES:
                raise BadImage(
                    f"the image has pixels of mode {opened.mode!r}; 8 bits per channel are expected"
                )
            if opened.format in ("JPEG", "MPO") and _has_too_many_scans(data):
                raise BadImage(f"the JPEG has more than {MAX_SCANS} scans")
            upright = ImageOps.exif_transpose(opened)
            return np.asarray(_converted(upright, image.mode), dtype=np.uint8)
    except (ImageTooLarge, BadImage):
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"the image is too large: {error}") from error
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise BadImage(f"this is no image of a known format ({known})") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever their parsing stumbles over
        text = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise BadImage(f"the image cannot be decoded: {text}") from error


def _opened(data: bytes) -> Image.Image:
    """Its header is read; Pillow's own warning of a large one is kept quiet."""
    from PIL import Image

    # the filters are the process's: two threads would restore each other's
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data), formats=FORMATS)


def _has_too_many_scans(data: bytes) -> bool:
    """Whether a JPEG has more than `MAX_SCANS`; previews and what follows its end do not count.

    Source: ITU-T T.81, annex B.1.1; what stands between two segments is skipped, as libjpeg does.
    """
    scans = 0
    position = 2
    while found := _MARKER.search(data, position):
        kind = data[found.start() + 1]
        if kind == _END_OF_IMAGE:
            return False
        scans += kind == _START_OF_SCAN
        if scans > MAX_SCANS:
            return True
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return False


def _converted(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode in ("P", "PA"):  # a palette may hold transparency in a form RGB cannot take
        picture = picture.convert("RGBA")
    return picture if picture.mode == mode else picture.convert(mode)
