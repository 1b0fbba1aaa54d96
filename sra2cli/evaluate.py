"""sra2 eval: samples → numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from sra2cli import console, digits
from sra2cli.errors import DataError, SetupError
from sra2cli.features import Extractor, all_features, digits_extractor, image_batches
from sra2cli.files import write_atomically
from sra2cli.metrics import frechet_distance, statistics
from sra2cli.run import environment
from sra2cli.sources import Source, open_source
from sra2cli.sources.folder import FolderReader

METRICS = ("fd-digits",)


def evaluate(samples: Path, *, metric: str, ref: str | None = None) -> dict[str, Any]:
    """Judge a folder of samples; the result is also written to SAMPLES/eval-METRIC.json.

    Args:
        ref: folder of reference images; None: the metric's own (fd-digits: scikit-learn's digits).

    Raises:
        SetupError: unknown metric, no samples, unfinished samples.
        DataError: an image cannot be read.
    """
    if metric not in METRICS:
        raise SetupError(f"unknown metric '{metric}': one of {', '.join(METRICS)}")
    about = read_record(samples)
    source = sample_source(samples, about)
    extractor = digits_extractor()
    reference = reference_features(extractor, ref)
    fake = all_features(extractor, image_batches(source, "samples"))
    for name, features in [("samples", fake), ("reference", reference)]:
        if len(features["features"]) < 2:
            raise SetupError(f"a Frechet distance needs at least 2 images: {name} has one")
    result: dict[str, Any] = {
        "samples": str(samples),
        "metric": metric,
        "fd-digits": frechet_distance(
            statistics(fake["features"]), statistics(reference["features"])
        ),
        "count": len(source),
        "reference": ref or "scikit-learn digits",
        "reference_count": len(reference["features"]),
        "extractor": {"name": extractor.name, "fingerprint": extractor.fingerprint},
    }
    if about and about.get("labels"):
        asked = np.asarray(about["labels"][: len(source)])
        result["accuracy"] = float((fake["logits"].argmax(axis=1) == asked).mean())
    result |= {"how": about, "environment": environment()}
    write_atomically(samples / f"eval-{metric}.json", json.dumps(result, indent=1) + "\n")
    if len(source) < 2 * fake["features"].shape[1]:
        console.warn(f"{len(source)} samples are few for a Frechet distance: it comes out too high")
    return result


def read_record(samples: Path) -> dict[str, Any] | None:
    """samples.json, or None for a folder that `sra2 sample` did not make."""
    if not samples.is_dir():
        raise SetupError(f"no samples folder {samples}")
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


def sample_source(samples: Path, about: dict[str, Any] | None) -> Source:
    """The sample images in order; exactly as many as the record says."""
    if about is None:
        return open_source(samples)
    names = [f"{i:06d}.png" for i in range(about["num"])]
    missing = [name for name in names if not (samples / name).exists()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} samples are missing, first {samples / missing[0]}: "
            "sample again"
        )
    return Source(samples, names, None, [], FolderReader(samples, names))


def reference_features(extractor: Extractor, ref: str | None) -> dict[str, np.ndarray]:
    if ref is None:
        images, _ = digits.load_digits()
        return extractor.run(images)
    return all_features(extractor, image_batches(open_source(Path(ref)), "reference"))
