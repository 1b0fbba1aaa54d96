"""Decoding images, and the ADM centre crop that all papers of this family use."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from sra2cli.core.errors import DataError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
PIXELS = 180_000_000  # of the largest image that is opened: about 2 GB while it is decoded


def decode_image(data: bytes, resolution: int | None = None) -> np.ndarray:
    """An encoded image as (H, W, 3) uint8, centre-cropped to `resolution` if given.

    As ADM does: EXIF rotation is ignored, alpha dropped, the first frame taken. 16-bit images are
    scaled to 8 bits instead of clipped. The content decides, not the name.

    Raises:
        DataError: what is wrong with the image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > PIXELS:
                raise DataError(f"too large to open safely ({image.width}x{image.height})")
            image.load()
            rgb = to_rgb(image)
        return np.asarray(rgb) if resolution is None else center_crop(rgb, resolution)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError("not an image" if data else "not an image: empty") from None
    except Image.DecompressionBombError:
        raise DataError("too large to open safely") from None
    except MemoryError:
        raise DataError("too large for this machine's memory") from None
    except Exception as error:  # a damaged file makes PIL's decoders raise anything
        raise DataError(" ".join(str(error).split()) or type(error).__name__) from None


def read_image(path: Path, resolution: int | None = None) -> np.ndarray:
    """`decode_image` of a file; DataError where it cannot be read at all."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(error.strerror or str(error)) from None
    return decode_image(data, resolution)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as 8-bit RGB; 16-bit greys are scaled to 8 bits, not clipped."""
    if image.mode.startswith("I"):  # I;16, I;16B, I: PIL would clip these at 255
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray((values // 257).astype(np.uint8))
    return image.convert("RGB")


def center_crop(image: Image.Image, resolution: int) -> np.ndarray:
    """ADM's centre crop, exactly: (H, W) PIL image → (resolution, resolution, 3) uint8.

    Halve with a box filter while the short side is at least twice the target, bring the short side
    to the target with a bicubic filter, cut out the middle (openai/guided-diffusion).
    """
    while min(image.size) >= 2 * resolution:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = resolution / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    if size[0] * size[1] > PIXELS:
        raise DataError(f"too elongated to crop ({image.width}x{image.height})")
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    top, left = (size[1] - resolution) // 2, (size[0] - resolution) // 2
    return pixels[top : top + resolution, left : left + resolution]
