"""An image file, as a camera or an application gives it, becomes a tensor.

Rules:
    * The size is read from the header and held to `ImageSpec.max_pixels` before a pixel is decoded.
    * The picture stands as its EXIF orientation says; of an animation only the first frame counts.
    * It is decoded and nothing else: scaling and cropping are steps, which training shares.
    * What cannot be shown in 8 bits per channel without a choice of range is refused.

Pillow is imported at the first use: it comes with the extra `skerry-agent[image]`.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

import numpy as np

from edge_agent.pipeline.errors import BadImage, ImagesUnavailable, ImageTooLarge
from edge_agent.pipeline.interface import spec_dtype, validate
from edge_agent.runtime.session import Array, Tensors
from edge_agent.wire.manifest import ImageSpec, TensorSpec

if TYPE_CHECKING:
    from PIL import Image

FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
"""The decoders that are tried; Pillow knows dozens more, which no camera needs."""

SUFFIXES: Final = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
)

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
        BadImage: no image, a damaged one, or one with more than 8 bits per channel.
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
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > image.max_pixels:
                raise ImageTooLarge(
                    f"the image has {width}×{height} pixels, allowed are {image.max_pixels}"
                )
            if opened.mode not in _EIGHT_BIT_MODES:
                raise BadImage(
                    f"the image has pixels of mode {opened.mode!r}; 8 bits per channel are expected"
                )
            upright = ImageOps.exif_transpose(opened)
            return np.asarray(_converted(upright, image.mode), dtype=np.uint8)
    except (ImageTooLarge, BadImage):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(f"the image is too large: {error}") from error
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise BadImage(f"this is no image of a known format ({known})") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever their parsing stumbles over
        text = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise BadImage(f"the image cannot be decoded: {text}") from error


def _converted(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode in ("P", "PA"):  # a palette may hold transparency in a form RGB cannot take
        picture = picture.convert("RGBA")
    return picture if picture.mode == mode else picture.convert(mode)
