"""Where a number would mislead, and why: what a result should not be read without."""

from collections.abc import Sequence
from itertools import pairwise

from sra2cli.evaluation.extractors import Collected, Extractor
from sra2cli.evaluation.image_sets import ImageSet, Seen
from sra2cli.evaluation.metrics import IS_SPLIT
from sra2cli.evaluation.reference import Reference
from sra2cli.evaluation.scores import METRICS

PAPERS_COUNT = 50_000
DIGITS_SIZE = (32, 32)


def caveats(
    names: Sequence[str],
    extractor: Extractor,
    images: ImageSet | Seen,
    fake: Collected,
    real: Reference | None,
    *,
    left_out: Sequence[str] = (),
) -> list[str]:
    """One line for each reason to mistrust the metrics, worst first; [] if there is none."""
    found = [*_of_counts(names, extractor, fake, real), *_of_sizes(extractor, images, real)]
    if real is not None and isinstance(images, ImageSet):
        theirs = real.about.get("images", real.about).get("pixels_sha256")
        if images.sha256 == theirs:
            found.append("the samples are the very images of the reference")
    found += [f"{images.name}: {line}" for line in images.left_out]
    if real is not None:
        found += [f"{real.about['name']}: {line}" for line in real.about.get("left_out", ())]
    if "is" in names and images.labels and sorted_by_class(images.labels[: images.count]):
        split = f"IS over consecutive splits of {IS_SPLIT:,}"
        found.append(
            f"the samples are sorted by class: {split} comes out far too low, about half"
            if images.count > IS_SPLIT
            else f"the samples are sorted by class: of more of them, {split} would be halved"
        )
    if left_out and real is not None:
        found.append(f"{real.about['name']} does not allow {', '.join(left_out)}: left out")
    return found


def sorted_by_class(labels: Sequence[int]) -> bool:
    """Whether several classes come in one block each."""
    classes = len(set(labels))
    return 1 < classes < len(labels) and sum(a != b for a, b in pairwise(labels)) == classes - 1


def _of_counts(
    names: Sequence[str], extractor: Extractor, fake: Collected, real: Reference | None
) -> list[str]:
    count, found = fake.count or 0, []
    widths = [
        extractor.widths[METRICS[n].feature] for n in names if METRICS[n].needs == "statistics"
    ]
    if extractor.classifies and widths and count < 2 * max(widths):
        found.append(f"{count} samples are few for a Frechet distance: it comes out too high")
    if not extractor.classifies and names:
        if widths and count < max(widths):
            found.append(
                f"{count:,} samples are fewer than the {max(widths):,} features: covariances are "
                "of lower rank, and FID and sFID come out far too high"
            )
        if count != PAPERS_COUNT:
            found.append(
                f"{count:,} samples, not the {PAPERS_COUNT:,} of the papers: not to be compared "
                "with their numbers"
            )
        if widths and real and real.kept.count and real.kept.count < max(widths):
            found.append(
                f"the reference has {real.kept.count:,} images, fewer than the {max(widths):,} "
                "features: FID and sFID come out far too high"
            )
    return found


def _of_sizes(extractor: Extractor, images: ImageSet | Seen, real: Reference | None) -> list[str]:
    found = []
    if images.resized:
        found.append(f"{images.resized:,} samples were resized or cropped before they were judged")
    size = images.size
    theirs = real.about.get("size") if real else None
    if extractor.classifies:
        if size is not None and size != DIGITS_SIZE:
            found.append(
                f"fd-digits means nothing but for digits of 32x32; these are {size[1]}x{size[0]}: "
                "choose --metrics"
            )
    elif size is not None and theirs and list(size) != list(theirs):
        found.append(
            f"the samples are {size[1]}x{size[0]}, the reference {theirs[1]}x{theirs[0]}: "
            "--crop makes both the same"
        )
    return found
