"""sra2 eval: samples → numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.files import write_json
from sra2cli.data.sources import CONVENTION, Choice, Source, is_pattern
from sra2cli.data.sources.folder import FolderReader
from sra2cli.data.sources.layout import is_image
from sra2cli.evaluation.image_sets import Crop, ImageSet, from_source, open_images
from sra2cli.evaluation.judge import Judge
from sra2cli.evaluation.judging import Judging
from sra2cli.evaluation.reference import check_target, save_reference
from sra2cli.sampling.folder import image_file, record_of


def evaluate(
    samples: Path,
    judging: Judging | None = None,
    choice: Choice = CONVENTION,
    *,
    save_stats: Path | None = None,
    device: str = "cpu",
    out: Path | None = None,
) -> dict[str, Any]:
    """Judge samples; the result is also written to `out`, by default beside or in them.

    Args:
        samples: a folder of `sra2 sample`, any source of images, or an ADM .npz.
        choice: how to read a source of images, where there are several ways.
        save_stats: write the statistics of these samples here, to be used as a reference.

    Raises:
        SetupError: unknown metric, no or unfinished samples, a reference that does not do.
        DataError: an image, a reference or features that cannot be.
    """
    judging = judging or Judging()
    judging.check()
    if save_stats is not None:
        check_target(save_stats)
    images, about = open_samples(samples, judging.crop, choice)
    labels = about.get("labels") if about else None
    judge = Judge(
        judging,
        device=device,
        first_stage=about["vae"]["fingerprint"] if about and "vae" in about else None,
        statistics_alone=save_stats is not None,
        prompts=images.prompts,
    )
    if save_stats is not None and not judge.extractor.saved:
        raise SetupError(
            f"--save-stats: {', '.join(judge.names)} compare with no statistics; add fid"
        )
    _ = judge.reference  # what is missing is said before images are looked at
    if save_stats is None:
        fake = judge.look(images.batches(judging.batch), labels)
    else:
        fake = save_reference(
            save_stats,
            images,
            judge.together,
            judge.needed(labels),
            crop=judging.crop,
            batch=judging.batch,
        )
    result = judge.result(images, fake, labels=labels, how=about)
    result["saved_statistics"] = None if save_stats is None else str(save_stats)
    write_json(out or result_file(samples, judge.names), result)
    return result


def result_file(samples: Path, names: Sequence[str]) -> Path:
    """Where a result goes: into a folder of samples, beside a file or pattern."""
    name = f"eval-{'-'.join(names) or 'statistics'}.json"
    if samples.is_dir():
        return samples / name
    folder = next(p for p in samples.parents if p.is_dir())
    return folder / f"{samples.stem}-{name}"


def open_samples(
    samples: Path, crop: Crop | None, choice: Choice = CONVENTION
) -> tuple[ImageSet, dict[str, Any] | None]:
    """The samples in order, and the record of `sra2 sample` in or beside them, if there is one."""
    if not samples.exists() and not is_pattern(samples):
        raise SetupError(f"no samples folder {samples}")
    folder = samples if samples.is_dir() else samples.parent
    about = read_record(folder)
    if about is not None and choice != CONVENTION:
        raise SetupError(f"{samples} was drawn by sra2: its images are read in one way alone")
    if samples.is_dir() and about is not None:
        images = from_source(sample_source(samples, about), "samples", crop=crop)
        images.labels, images.prompts = about.get("labels"), about.get("prompts")
        return images, about
    images = open_images(samples, "samples", crop=crop, choice=choice)
    if samples.suffix.lower() != ".npz" or about is None:
        return images, None
    if images.count != about["num"]:
        raise DataError(f"{samples} holds {images.count} images, {folder}'s record {about['num']}")
    images.labels = about.get("labels") or images.labels
    images.prompts = about.get("prompts")
    return images, about


def read_record(samples: Path) -> dict[str, Any] | None:
    """samples.json, or None for a folder that `sra2 sample` did not make."""
    try:
        about = record_of(samples)
    except ValueError as error:
        raise DataError(
            f"{samples}/samples.json is not a record of sra2 sample ({error}): sample again"
        ) from None
    if about is not None and not about.get("complete"):
        raise SetupError(f"{samples} is unfinished: run `sra2 sample` again")
    return about


def sample_source(samples: Path, about: dict[str, Any]) -> Source:
    """The sample images in order; exactly as many as the record says."""
    num, there = about["num"], {file.name for file in samples.iterdir()}
    first = next((i for i in range(num) if image_file(samples, i).name not in there), None)
    if first is not None:  # the record may say any number: only what is there is listed
        count = sum(name.endswith(".png") and name != "grid.png" for name in there)
        raise DataError(
            f"{max(1, num - count)} of {num} samples are missing, first "
            f"{image_file(samples, first)}: sample again"
        )
    names = [image_file(samples, i).name for i in range(num)]
    other = sorted({name for name in there if is_image(name)} - {*names, "grid.png"})
    said = [f"{len(other):,} images are not of its record, as {other[0]}"] if other else []
    return Source(samples, names, None, [], FolderReader(samples, names), passed_over=said)
