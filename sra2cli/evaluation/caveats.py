"""Where a number would mislead, and why: what a result should not be read without."""

from collections.abc import Sequence
from itertools import pairwise

from sra2cli.data.images import CROPS
from sra2cli.evaluation.extractors import Collected, Extractor
from sra2cli.evaluation.image_sets import Crop, ImageSet, Seen
from sra2cli.evaluation.metrics import IS_SPLIT
from sra2cli.evaluation.reference import Reference
from sra2cli.evaluation.scores import METRICS

PAPERS_COUNT = 50_000
UVIT = "fid_stats_mscoco256_val"  # U-ViT's statistics of MS-COCO
TEXT_COUNT = 30_000  # the least that papers draw of MS-COCO's captions
PACKAGED_SIZE = (32, 32)  # of digits and emoji


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
    counted = [name for name in names if METRICS[name].needs != "prompts"]
    text = images.prompts is not None
    found = _of_counts(counted, extractor, fake, real, text=text) if counted else []
    found += _of_sizes(extractor, images, real) if counted else []
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


def of_prompts(
    images: ImageSet | Seen,
    readers: Sequence[Extractor],
    real: Reference | None,
    crop: str | None,
) -> list[str]:
    """The same, of images that were drawn of prompts, and of what these are compared with.

    crop: of the images that the network was trained on; None: not known.
    """
    found, prompts = [], list(dict.fromkeys(images.prompts or ()))
    for reader in readers:
        cut = 0 if reader.too_long is None else sum(reader.too_long(prompts))
        if cut:
            found.append(f"{reader.name} reads {cut:,} of {len(prompts):,} prompts in part alone")
    if real is not None and (UVIT in real.about["name"] or (prompts and _alone(real))):
        found.append(
            f"{real.about['name']} holds mu and sigma alone: those of U-ViT for MS-COCO were made "
            "with another resize to 299x299 than ADM's, which is ours, and FID against them is "
            "another number: save statistics of the val images with --save-stats"
        )
    theirs = real.about.get("crop") if real is not None else None
    kind = None if theirs is None else Crop.of(theirs).kind
    if real is not None and crop in CROPS and kind not in (None, crop):
        found.append(
            f"{real.about['name']} was cropped as {kind}, what the network was trained on as "
            f"{crop}: FID tells both apart (--crop {crop}:SIDE)"
        )
    return found


def _alone(real: Reference) -> bool:
    """Whether a reference is statistics of others, without a count or images."""
    about = real.about
    return bool(about.get("statistics_from_file")) and not (about["count"] or about.get("size"))


def sorted_by_class(labels: Sequence[int]) -> bool:
    """Whether several classes come in one block each."""
    classes = len(set(labels))
    return 1 < classes < len(labels) and sum(a != b for a, b in pairwise(labels)) == classes - 1


def _of_counts(
    names: Sequence[str],
    extractor: Extractor,
    fake: Collected,
    real: Reference | None,
    *,
    text: bool,
) -> list[str]:
    count = fake.count or 0
    found: list[str] = []
    distances = [name for name in names if METRICS[name].needs == "statistics"]
    widths = [extractor.widths[METRICS[name].feature] for name in distances]
    comes = f"{' and '.join(distances)} come{'s' * (len(distances) == 1)} out far too high"
    if extractor.classifies and widths and count < 2 * max(widths):
        found.append(f"{count} samples are few for a Frechet distance: it comes out too high")
    if not extractor.classifies:
        if widths and count < max(widths):
            found.append(
                f"{count:,} samples are fewer than the {max(widths):,} features: covariances are "
                f"of lower rank, and {comes}"
            )
        if text and count < TEXT_COUNT:
            found.append(
                f"{count:,} samples, fewer than the {TEXT_COUNT:,} and more that papers draw of "
                "MS-COCO's captions: not to be compared with their numbers"
            )
        if not text and count != PAPERS_COUNT:
            found.append(
                f"{count:,} samples, not the {PAPERS_COUNT:,} of the papers: not to be compared "
                "with their numbers"
            )
        if widths and real and real.kept.count and real.kept.count < max(widths):
            found.append(
                f"the reference has {real.kept.count:,} images, fewer than the {max(widths):,} "
                f"features: {comes}"
            )
    return found


def _of_sizes(extractor: Extractor, images: ImageSet | Seen, real: Reference | None) -> list[str]:
    found = []
    if images.resized:
        found.append(f"{images.resized:,} samples were resized or cropped before they were judged")
    size = images.size
    theirs = real.about.get("size") if real else None
    if extractor.classifies:
        if size is not None and size != PACKAGED_SIZE:
            found.append(
                f"fd-{extractor.of} means nothing but for {extractor.of} of 32x32; "
                f"these are {size[1]}x{size[0]}: choose --metrics"
            )
    elif size is not None and theirs and list(size) != list(theirs):
        found.append(
            f"the samples are {size[1]}x{size[0]}, the reference {theirs[1]}x{theirs[0]}: "
            "--crop makes both the same"
        )
    return found
