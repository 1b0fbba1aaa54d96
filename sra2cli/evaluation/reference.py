"""What samples are compared with: ADM's .npz, images of one's own, or statistics saved of them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sra2cli.config.checks import Count
from sra2cli.config.reading import NotRequired, TypedDict, checked
from sra2cli.core.errors import DataError, SetupError
from sra2cli.data import npz
from sra2cli.evaluation.extractors import (
    Collected,
    Extractor,
    Wanted,
    features_of,
)
from sra2cli.evaluation.image_sets import Crop, ImageSet, Seen, from_array, open_images
from sra2cli.evaluation.metrics import Statistics
from sra2cli.evaluation.scores import METRICS, wanted

KEPT = 10_000  # images that are saved beside statistics, for precision and recall: as many as ADM's
FORMAT = "sra2-reference"


class Network(TypedDict):
    """What statistics were made with."""

    name: str
    fingerprint: str


class Saved(TypedDict):
    """What `save_reference` says of its statistics, as far as it is read.

    networks: by key of a mean, where there are several; extractor: the first.
    """

    format: Literal["sra2-reference"]
    count: Count
    size: NotRequired[list[Count] | None]
    crop: NotRequired[Count | str | None]
    extractor: Network
    networks: NotRequired[dict[str, Network]]


@dataclass(frozen=True)
class Reference:
    """Statistics and rows of the reference, and where they come from.

    about: name, SHA-256 (of the file; of the pixels for images), counts, sizes.
    """

    kept: Collected
    about: dict[str, Any]


def is_npz(ref: str) -> bool:
    return Path(ref).suffix.lower() == ".npz"


def compared(metrics: Sequence[str]) -> list[str]:
    """The metrics that need a reference."""
    return [name for name in metrics if METRICS[name].needs in ("statistics", "rows")]


def lacking(ref: str | None, extractor: Extractor, metrics: Sequence[str]) -> dict[str, str]:
    """Metric → what it needs that an .npz does not have; {} for any other reference."""
    keys = npz.keys_of(Path(ref)) if ref is not None and is_npz(ref) else {npz.IMAGES}
    found: dict[str, str] = {}
    if npz.IMAGES in keys:
        return found
    for name in compared(metrics):
        if METRICS[name].needs == "rows":
            found[name] = f"images ({npz.IMAGES})"
            continue
        suffix = extractor.saved[METRICS[name].feature]
        pair = {f"mu{suffix}", f"sigma{suffix}"}
        if not pair & keys:
            found[name] = f"{' and '.join(sorted(pair))}, or images ({npz.IMAGES})"
    return found


def check_reference(ref: str | None, extractor: Extractor, metrics: Sequence[str]) -> None:
    """SetupError if a reference is an .npz that lacks something."""
    for name, missing in lacking(ref, extractor, metrics).items():
        raise SetupError(f"{ref} has no {missing}: {name} cannot be computed with it")


def uncompared(names: Sequence[str], what: str = "a folder of images") -> SetupError:
    """The error where there is nothing to compare with. what: would do, beside an .npz."""
    return SetupError(
        f"{', '.join(names)}: compared with what? Give --ref: an .npz as ADM's, or {what}"
    )


def open_reference(
    ref: str | None,
    extractor: Extractor,
    metrics: Sequence[str],
    *,
    crop: Crop | None = None,
    batch: int,
) -> Reference | None:
    """What the metrics need of the reference; None if that is nothing.

    Args:
        ref: an .npz, a folder or archive of images; None: the network's stand-in.
        crop: of images.

    Raises:
        SetupError: no reference, or one without what a metric needs.
        DataError: it is damaged, or its statistics cannot be.
    """
    need = wanted(compared(metrics))
    if not need:
        return None
    if ref is not None and is_npz(ref):
        return _from_npz(Path(ref), extractor, metrics, need, crop=crop, batch=batch)
    if ref is not None:
        images = open_images(Path(ref), "reference images", crop=crop)
    elif extractor.stand_in is not None:
        name, make = extractor.stand_in
        images = from_array(name, "reference images", make())
    else:
        raise uncompared(compared(metrics))
    return Reference(features_of(extractor, images.batches(batch), need), describe(images))


def describe(images: ImageSet | Seen) -> dict[str, Any]:
    """What results say of images that were streamed."""
    size = None if images.size is None else list(images.size)
    return {
        "name": images.name,
        "count": images.count,
        "size": size,
        "resized": images.resized,
        **({"crop": str(images.crop)} if isinstance(images, ImageSet) and images.crop else {}),
        **({"left_out": list(images.left_out)} if images.left_out else {}),
        "batches_sha256" if isinstance(images, Seen) else "pixels_sha256": images.sha256,
    }


def _from_npz(
    path: Path,
    extractor: Extractor,
    metrics: Sequence[str],
    need: Wanted,
    *,
    crop: Crop | None,
    batch: int,
) -> Reference:
    check_reference(str(path), extractor, metrics)
    keys = npz.keys_of(path)
    meta = npz.meta(path)
    try:
        meta = checked(Saved, meta) if meta.get("format") == FORMAT else {}
        cropped = Crop.of(str(meta["crop"])) if meta.get("crop") else None
    except (ValueError, SetupError) as error:
        raise DataError(f"{path}: its {npz.META} is damaged: {error}") from None
    about: dict[str, Any] = {
        "name": str(path),
        "sha256": npz.sha256(path),
        "count": meta.get("count"),
    }
    if meta.get("size"):
        about["size"] = meta["size"]
    if cropped is not None:
        about["crop"] = str(cropped)
    statistics = {}
    for feature in sorted(need.moments):
        suffix = extractor.saved[feature]
        if {f"mu{suffix}", f"sigma{suffix}"} & keys:
            _check_network(path, meta, f"mu{suffix}", extractor.network_of(feature))
            mean, covariance = npz.statistics(path, suffix, extractor.widths[feature])
            statistics[feature] = Statistics(mean, covariance, meta.get("count"))
    rest = Wanted(need.moments - statistics.keys(), need.rows)
    about["statistics_from_file"] = sorted(statistics)
    if npz.IMAGES in keys and not rest:
        about["size"] = list(npz.image_shape(path)[1:3])
    if not rest:
        return Reference(Collected(about["count"], statistics, {}), about)
    images = open_images(path, "reference images", crop=crop)
    kept = features_of(extractor, images.batches(batch), rest)
    about |= {"images": describe(images), "size": describe(images)["size"]}
    if not statistics:
        about["count"] = images.count
    return Reference(Collected(about["count"], kept.statistics | statistics, kept.rows), about)


def _check_network(path: Path, meta: dict[str, Any], key: str, network: Extractor) -> None:
    """Refuse statistics of another network, or of one that is not said where there are several."""
    if not meta and network.standard:
        return
    if not meta:
        raise SetupError(
            f"{path} does not say which network its {key} is of: save statistics of the images "
            "with --save-stats"
        )
    made_with: Network = meta.get("networks", {}).get(key, meta["extractor"])
    if made_with["fingerprint"] != network.fingerprint:
        raise SetupError(
            f"{path} was made with another network ({made_with['name']}) than {network.name}: "
            "save its statistics again"
        )


def check_target(path: Path) -> None:
    """SetupError if statistics cannot be saved there."""
    if not is_npz(str(path)):
        raise SetupError(f"--save-stats writes an .npz, not {path}")
    if not path.parent.is_dir():
        raise SetupError(f"no folder {path.parent} to save statistics in")


def save_reference(
    path: Path,
    images: ImageSet,
    extractor: Extractor,
    need: Wanted,
    *,
    crop: Crop | None,
    batch: int,
) -> Collected:
    """What is wanted of images, whose statistics are written under ADM's keys on the way.

    Up to `KEPT` images are written too, evenly spaced, as folders are often sorted by class.
    """
    check_target(path)
    kept = min(images.count, KEPT)
    chosen = {i * images.count // kept for i in range(kept)}
    need = Wanted(need.moments | extractor.saved.keys(), need.rows, need.score)
    with npz.Writer(path, kept) as writer:
        batches = _writing(images.batches(batch), writer, chosen)
        found = features_of(extractor, batches, need)
        about = {
            "format": FORMAT,
            **describe(images),
            "crop": crop and str(crop),
            "extractor": _named((*extractor.parts, extractor)[0]),
            **({"networks": _networks(extractor)} if extractor.parts else {}),
            "images": f"{kept} of {images.count}, evenly spaced",
        }
        arrays = {npz.META: np.array(json.dumps(about))}
        for feature, suffix in extractor.saved.items():
            arrays[f"mu{suffix}"] = found.statistics[feature].mean
            arrays[f"sigma{suffix}"] = found.statistics[feature].covariance
        writer.finish(arrays)
    return found


def _named(extractor: Extractor) -> Network:
    return {"name": extractor.name, "fingerprint": extractor.fingerprint}


def _networks(extractor: Extractor) -> dict[str, Network]:
    """Key of a mean → the network it is of."""
    saved = extractor.saved.items()
    return {f"mu{suffix}": _named(extractor.network_of(feature)) for feature, suffix in saved}


def _writing(
    batches: Iterator[np.ndarray], writer: npz.Writer, chosen: set[int]
) -> Iterator[np.ndarray]:
    """The same batches; images with chosen numbers are written as they pass."""
    index = 0
    for batch in batches:
        for image in batch:
            if index in chosen:
                writer.add_image(image)
            index += 1
        yield batch
