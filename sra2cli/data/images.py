"""Decoding images, and centre crops: ADM's, as papers on ImageNet, and U-ViT's, as on MS-COCO."""

import io
import math
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from sra2cli.core.errors import DataError

try:
    import simplejpeg
except ImportError:  # then damage inside a JPEG is not seen
    simplejpeg = None

FORMATS = {  # that are opened, whatever a file is called: no other decoder, nor program, is asked
    "JPEG": {".jfif", ".jpe", ".jpeg", ".jpg"},
    "PNG": {".png"},
    "WEBP": {".webp"},
    "AVIF": {".avif"},
    "JPEG2000": {".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx"},
    "GIF": {".gif"},
    "BMP": {".bmp"},
    "TIFF": {".tif", ".tiff"},
    "PPM": {".pbm", ".pfm", ".pgm", ".pnm", ".ppm"},
}
LFS = b"version https://git-lfs"  # what a file begins with that lies elsewhere
SUFFIXES = set().union(*FORMATS.values())
SEES_DAMAGE = simplejpeg is not None
PIXELS = 180_000_000  # of the largest image that is opened: about 2 GB while it is decoded
HELD = {"WEBP": 20, "JPEG2000": 20, "AVIF": 14, "F": 20, "I": 20}  # bytes a pixel, of 11 else
BITS, PHOTOMETRIC, SAMPLES, SIGNED = 258, 262, 339, 2  # tags of a TIFF; a value of the third


@cache
def formats() -> list[str]:
    """Those of FORMATS that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height, by the head of an encoded image; OSError, ValueError where it has none."""
    with Image.open(io.BytesIO(data), formats=formats()) as image:
        return image.size


def decode_image(
    data: bytes, resolution: int | None = None, crop: str = "adm-center"
) -> np.ndarray:
    """An encoded image as (H, W, 3) uint8, cropped to `resolution` if given, as a row of CROPS.

    As ADM does: EXIF rotation is ignored, alpha dropped, the first frame taken. Other depths than
    8 bits are scaled as `to_rgb` says. The content decides, not the name.

    Raises:
        DataError: what is wrong with the image.
    """
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            if image.width * image.height > PIXELS * 11 // held_bytes(image):
                raise DataError(f"too large to open safely ({image.width}x{image.height})")
            image.load()
            rgb = to_rgb(image)
        return np.asarray(rgb) if resolution is None else CROPS[crop](rgb, resolution)
    except DataError:
        raise
    except UnidentifiedImageError:
        why = "" if data else ": empty"
        if data.startswith(LFS):
            why = " but a pointer of Git LFS to it: git lfs pull"
        raise DataError(f"not an image{why}") from None
    except Image.DecompressionBombError:
        raise DataError("too large to open safely") from None
    except MemoryError:
        raise DataError("too large for this machine's memory") from None
    except Exception as error:  # a damaged file makes PIL's decoders raise anything
        raise DataError(" ".join(str(error).split()) or type(error).__name__) from None


def held_bytes(image: Image.Image) -> int:
    """For each pixel, while an image is decoded and becomes RGB: as measured."""
    return max(HELD.get(key, 11) for key in (image.format or "", image.mode[0]))


def refuse_damaged_jpeg(data: bytes) -> None:
    """DataError where libjpeg warns of damage inside a JPEG, which PIL keeps to itself.

    Not asked of images that are judged: real references hold some with a few bytes too many.
    """
    if not SEES_DAMAGE or not data.startswith(b"\xff\xd8"):
        return
    try:
        simplejpeg.decode_jpeg(data, "GRAY", fastdct=True, fastupsample=True)
    except ValueError as error:
        if "Corrupt JPEG data" in str(error):  # else a kind of JPEG that simplejpeg does not know
            raise DataError(str(error)) from None


def read_image(path: Path, resolution: int | None = None, crop: str = "adm-center") -> np.ndarray:
    """`decode_image` of a file; DataError where it cannot be read at all."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(error.strerror or str(error)) from None
    return decode_image(data, resolution, crop)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as 8-bit RGB. Greys of other depths are scaled by what the format says of black
    and white, which PIL would clip at 255.

    Raises:
        DataError: numbers of which it does not say.
    """
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    bits = tags.get(BITS, (16,))[0]
    if bits <= 16 and tags.get(SAMPLES, (1,))[0] == SIGNED:
        raise DataError("signed integers of unknown range")
    if image.mode.startswith("I"):  # I;16, I;16B, I
        levels = integer_levels(np.asarray(image), bits)
    elif image.mode == "F":
        if image.info.get("scale", 1) != 1:  # of a PFM
            raise DataError(f"float image of unknown range (scale {image.info['scale']:g})")
        levels = float_levels(np.asarray(image))
    else:
        return image.convert("RGB")
    if tags.get(PHOTOMETRIC) == 0:  # white is zero: PIL sees to it up to 8 bits
        levels = 255 - levels
    return Image.fromarray(levels).convert("RGB")


def integer_levels(values: np.ndarray, bits: int) -> np.ndarray:
    """Whole numbers of so many bits as uint8; DataError for more than 16, unless they fill 16."""
    if bits > 16:
        low, high = int(values.min()), int(values.max())
        if low < 0 or not 1 << 15 <= high < 1 << 16:
            raise DataError(f"{bits}-bit integers of unknown range ({low} to {high})")
        bits = 16
    return (values.astype(np.uint32) * 255 // ((1 << bits) - 1)).astype(np.uint8)


def float_levels(values: np.ndarray) -> np.ndarray:
    """Floats from 0 (black) to 1 (white), or whole numbers up to 255, as uint8.

    Raises:
        DataError: others: what is white cannot be told.
    """
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(low + high):
        raise DataError("float image with numbers that are not finite")
    levels = values * np.float32(255)
    np.rint(levels, out=levels)
    if low < 0 or high > 255 or (levels.max() > 255 and (values != np.rint(values)).any()):
        raise DataError(f"float image of unknown range ({low:g} to {high:g}, not 0 to 1)")
    return (levels if levels.max() <= 255 else values).astype(np.uint8)


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


def square_crop(image: Image.Image, resolution: int) -> np.ndarray:
    """U-ViT's centre crop, exactly: the largest square in the middle, to the target by LANCZOS."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((resolution, resolution), Image.Resampling.LANCZOS))


CROPS = {"adm-center": center_crop, "uvit-center": square_crop}  # by `StoreInfo.crop`
ADM = "adm-center"


def known_crop(name: str) -> str:
    """A row of CROPS by `StoreInfo.crop`: ADM's where a store of latents of others does not say."""
    return name if name in CROPS else ADM
