"""sra2 eval: samples → numbers."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sra2cli import console, npz, scores
from sra2cli.caveats import caveats
from sra2cli.errors import DataError, SetupError
from sra2cli.features import Collected, Extractor, Wanted, features_of
from sra2cli.files import write_atomically
from sra2cli.imagesets import ImageSet, Seen, from_source, open_images
from sra2cli.metrics import IS_SPLIT, NEIGHBOURS, Distances
from sra2cli.reference import (
    Reference,
    check_target,
    describe,
    is_npz,
    lacks,
    open_extractor,
    open_reference,
    save_reference,
)
from sra2cli.run import environment
from sra2cli.sources import Source
from sra2cli.sources.folder import FolderReader

BATCH = 64


def evaluate(
    samples: Path,
    *,
    metric: str | None = None,
    ref: str | None = None,
    weights: Path | None = None,
    save_stats: Path | None = None,
    crop: int | None = None,
    distances: Distances = "float16",
    batch: int = BATCH,
    device: str = "cpu",
    out: Path | None = None,
) -> dict[str, Any]:
    """Judge samples; the result is also written to `out`, by default beside or in them.

    Args:
        samples: a folder of `sra2 sample`, any source of images, or an ADM .npz.
        metric: names of scores.METRICS, with commas; None: see `choose`.
        ref: an ADM .npz, or a source of images; None: the metric's own (fd-digits: scikit-learn's
            digits).
        weights: of Inception; None: where torch-fidelity keeps them.
        save_stats: write the statistics of these samples here, to be used as a reference.
        crop: centre-crop all images to this side, as ADM does.

    Raises:
        SetupError: unknown metric, no or unfinished samples, a reference that does not do.
        DataError: an image, a reference or features that cannot be.
    """
    check_batch(batch, crop)
    names = choose(metric, ref, statistics_alone=save_stats is not None)
    if save_stats is not None:
        check_target(save_stats)
    images, about = open_samples(samples, crop)
    labels = about.get("labels") if about else None
    extractor = open_extractor(names, weights, device)
    left_out = [] if metric else impossible(names, extractor, ref)
    names = tuple(name for name in names if name not in left_out)
    real = open_reference(ref, extractor, names, crop=crop, batch=batch)
    need = needed(names, extractor, labels)
    if save_stats is None:
        fake = features_of(extractor, images.batches(batch), need)
    else:
        fake = save_reference(save_stats, images, extractor, need, crop=crop, batch=batch)
    result = result_of(
        images,
        fake,
        extractor,
        real,
        names,
        labels=labels,
        how=about,
        left_out=left_out,
        crop=crop,
        batch=batch,
        distances=distances,
        device=device,
    )
    result["saved_statistics"] = None if save_stats is None else str(save_stats)
    write_atomically(out or result_file(samples, names), json.dumps(result, indent=1) + "\n")
    return result


def check_batch(batch: int, crop: int | None) -> None:
    """SetupError for numbers that mean nothing."""
    if batch < 1 or (crop is not None and crop < 1):
        raise SetupError("--batch and --crop must be above 0")


def result_of(
    images: ImageSet | Seen,
    fake: Collected,
    extractor: Extractor,
    real: Reference | None,
    names: Sequence[str],
    *,
    labels: list[int] | None,
    how: dict[str, Any] | None,
    left_out: Sequence[str],
    crop: int | None,
    batch: int,
    distances: Distances,
    device: str,
) -> dict[str, Any]:
    """The metrics, and all they depend on; warns of what would mislead."""
    device = "cpu" if extractor.classifies else device
    found = scores.values(
        names, fake, real.kept if real else None, distances=distances, device=device
    )
    result = {
        "samples": images.name,
        "metric": ",".join(names),
        **found,
        **record(images, extractor, real, fake, labels),
        "settings": settings(names, crop=crop, batch=batch, distances=distances),
        "warnings": caveats(names, extractor, images, fake, real, left_out=left_out),
        "how": how,
        "environment": environment(device),
    }
    for warning in result["warnings"]:
        console.warn(warning)
    return result


def choose(metric: str | None, ref: str | None, *, statistics_alone: bool) -> tuple[str, ...]:
    """The metrics asked for; by default those of the papers against an .npz, else fd-digits.

    () where statistics are to be saved and nothing else is asked for.
    """
    if metric is not None:
        return scores.parse(metric)
    if ref is None and statistics_alone:
        return ()
    return scores.PAPERS if ref is not None and is_npz(ref) else ("fd-digits",)


def impossible(names: Sequence[str], extractor: Extractor, ref: str | None) -> list[str]:
    """Metrics that an .npz does not have enough for."""
    if ref is None or not is_npz(ref):
        return []
    keys = npz.keys_of(Path(ref))
    return [name for name in names if lacks(name, extractor, keys)]


def needed(names: Sequence[str], extractor: Extractor, labels: list[int] | None) -> Wanted:
    """What to keep of the samples' features; logits too, where accuracy can be told."""
    need = scores.wanted(names)
    if extractor.classifies and labels:
        return replace(need, rows=need.rows | {"logits"})
    return need


def settings(
    names: Sequence[str], *, crop: int | None, batch: int, distances: Distances
) -> dict[str, Any]:
    """What the numbers depend on, beside samples, reference and network."""
    return {
        "metrics": list(names),
        "crop": crop,
        "batch": batch,
        "is_split": IS_SPLIT,
        "neighbours": NEIGHBOURS,
        "dtypes": {"features": "float32", "statistics": "float64", "distances": distances},
    }


def record(
    images: ImageSet | Seen,
    extractor: Extractor,
    real: Reference | None,
    fake: Collected,
    labels: list[int] | None,
) -> dict[str, Any]:
    """What was compared with what, through which network."""
    result: dict[str, Any] = {
        "count": fake.count,
        "reference": real and real.about["name"],
        "reference_count": real and real.kept.count,
        "extractor": {
            "name": extractor.name,
            "fingerprint": extractor.fingerprint,
            **extractor.about,
        },
        "samples_about": describe(images),
        "reference_about": real and real.about,
    }
    if labels and "logits" in fake.rows:
        asked = np.asarray(labels[: fake.count])
        predicted = fake.rows["logits"].argmax(dim=1).numpy()
        result["accuracy"] = float((predicted == asked).mean())
    return result


def result_file(samples: Path, names: Sequence[str]) -> Path:
    """Where a result goes: into a folder of samples, beside a file or pattern."""
    name = f"eval-{'-'.join(names) or 'statistics'}.json"
    return samples / name if samples.is_dir() else samples.with_name(f"{samples.stem}-{name}")


def open_samples(samples: Path, crop: int | None) -> tuple[ImageSet, dict[str, Any] | None]:
    """The samples in order, and the record of `sra2 sample` in or beside them, if there is one."""
    if not samples.exists() and not any(c in samples.name for c in "*?["):
        raise SetupError(f"no samples folder {samples}")
    folder = samples if samples.is_dir() else samples.parent
    about = read_record(folder)
    if samples.is_dir() and about is not None:
        images = from_source(sample_source(samples, about), "samples", crop=crop)
        images.labels = about.get("labels")
        return images, about
    images = open_images(samples, "samples", crop=crop)
    if samples.suffix.lower() != ".npz" or about is None:
        return images, None
    if images.count < about["num"]:
        raise DataError(f"{samples} holds {images.count} images, {folder}'s record {about['num']}")
    images.labels = about.get("labels") or images.labels
    return images, about


def read_record(samples: Path) -> dict[str, Any] | None:
    """samples.json, or None for a folder that `sra2 sample` did not make."""
    record = samples / "samples.json"
    if not record.exists():
        return None
    try:
        about: dict[str, Any] = json.loads(record.read_text())
        about.get("complete"), about["num"]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise DataError(f"{record} is not a record of sra2 sample: sample again") from None
    if not about.get("complete"):
        raise SetupError(f"{samples} is unfinished: run `sra2 sample` again")
    return about


def sample_source(samples: Path, about: dict[str, Any]) -> Source:
    """The sample images in order; exactly as many as the record says."""
    names = [f"{i:06d}.png" for i in range(about["num"])]
    missing = [name for name in names if not (samples / name).exists()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} samples are missing, first {samples / missing[0]}: "
            "sample again"
        )
    return Source(samples, names, None, [], FolderReader(samples, names))
