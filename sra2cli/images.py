"""Image sources, and the ADM centre crop that all papers of this family use."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from sra2cli.errors import DataError, SetupError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class ImageFolder:
    """Images in a fixed order: sorted by class, then by name.

    names are paths relative to `root`; labels is None for a flat folder.
    """

    root: Path
    names: list[str]
    labels: list[int] | None
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.names)


def open_folder(root: Path) -> ImageFolder:
    """A folder of class folders (ImageNet's layout), or a flat folder of images without labels.

    Raises:
        SetupError: no such folder, no images in it, or images beside class folders.
    """
    if not root.is_dir():
        raise SetupError(f"no image folder {root}")
    flat = [p for p in sorted(root.iterdir()) if _is_image(p)]
    classes = {p.name: _images_below(p) for p in sorted(root.iterdir()) if p.is_dir()}
    classes = {name: found for name, found in classes.items() if found}
    if flat and classes:
        raise SetupError(
            f"{root} holds images ({flat[0].name}) beside class folders ({next(iter(classes))}): "
            "move either away"
        )
    if flat:
        return ImageFolder(root, [p.name for p in flat], None, [])
    if not classes:
        kinds = ", ".join(sorted(s[1:] for s in SUFFIXES))
        raise SetupError(f"no images in {root}: expected CLASS/image or image files ({kinds})")
    names = [p.relative_to(root).as_posix() for found in classes.values() for p in found]
    labels = [i for i, found in enumerate(classes.values()) for _ in found]
    return ImageFolder(root, names, labels, list(classes))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _images_below(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.rglob("*")) if _is_image(p)]


def read_image(path: Path, resolution: int | None = None) -> np.ndarray:
    """An image file as (H, W, 3) uint8, centre-cropped to `resolution` if given.

    As ADM does: EXIF rotation is ignored, alpha dropped, the first frame taken. 16-bit images are
    scaled to 8 bits instead of clipped.

    Raises:
        DataError: what is wrong with the file, without its name.
    """
    try:
        with Image.open(path) as image:
            image.load()
            rgb = to_rgb(image)
        return np.asarray(rgb) if resolution is None else center_crop(rgb, resolution)
    except UnidentifiedImageError:
        raise DataError("not an image") from None
    except Image.DecompressionBombError:
        raise DataError("too large to open safely") from None
    except Exception as error:  # a damaged file makes PIL's decoders raise anything
        raise DataError(" ".join(str(error).split()) or type(error).__name__) from None


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
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    top, left = (size[1] - resolution) // 2, (size[0] - resolution) // 2
    return pixels[top : top + resolution, left : left + resolution]
