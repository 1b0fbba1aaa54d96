"""Grids of samples that lie in run folders, put together by what was drawn, made small enough.

Grids of one series show the same noise: drawn alike, from networks of one shape of latent.
"""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sra2cli.core.errors import DataError
from sra2cli.data.images import read_image
from sra2cli.models.build import shape_of
from sra2cli.reports.evaluations import words
from sra2cli.reports.told import Told
from sra2cli.training.previews import GUIDED, PREVIEW, PREVIEWED

TIERS: tuple[tuple[int, int, int | None], ...] = (
    # Steps of a series, pixels of the longer side, quality; None: without loss.
    (40, 4096, None),
    (24, 1024, 88),
    (16, 768, 75),
    (12, 640, 65),
    (9, 512, 60),
    (7, 448, 50),
    (5, 384, 45),
    (4, 320, 40),
)
PREVIEWS = "previews of the training"
PROBED = 6  # grids that a tier is tried on
Frames = dict[tuple[int, int], Path]  # (run, step) → file


@dataclass
class Series:
    """Grids that were drawn alike. label: how. frames: (number of the run, training step) → PNG."""

    label: str
    count: int
    frames: Frames = field(default_factory=dict)

    def thinned(self, most: int) -> "Series":
        """At most so many steps, spread evenly, the first and the last among them; rather those
        that every run has."""
        steps = sorted({step for _, step in self.frames})
        if len(steps) <= most:
            return self
        runs = {run for run, _ in self.frames}
        shared = [s for s in steps if all((run, s) in self.frames for run in runs)]
        steps = shared if len(shared) >= most else steps
        kept = {steps[round(k)] for k in np.linspace(0, len(steps) - 1, most)}
        return Series(
            self.label, self.count, {at: f for at, f in self.frames.items() if at[1] in kept}
        )


def series_of(runs: Sequence[Told]) -> list[Series]:
    """All series of some runs: previews first, then samples, then those that were judged."""
    found: dict[str, Series] = {}
    for listing in (previews, samples, judged):
        for number, told in enumerate(runs):
            shape = shape_of(told.recipe)
            for file, step, drawn, count, kind in listing(told):
                noise = [kind, drawn, count, shape.state, shape.classes]
                if kind == PREVIEWS and shape.condition == "text":
                    noise.append(told.about["store"]["checksums"])  # whose captions are drawn
                label = f"{kind}: {words(drawn, {'images': count})}"
                key = json.dumps(noise, sort_keys=True)
                found.setdefault(key, Series(label, count)).frames[number, step] = file
    return list(found.values())


Listed = Iterator[tuple[Path, int, dict[str, Any], int, str]]  # file, step, sampling, images, kind


def previews(told: Told) -> Listed:
    """What the training drew of its EMA."""
    drawn = PREVIEW.to_dict()
    if shape_of(told.recipe).condition == "text":
        drawn |= {"cfg": GUIDED, "labels": None, "prompts": {"count": PREVIEWED}}
    for file in sorted(told.run.path.glob("previews/step-*.png")):
        digits = file.stem.removeprefix("step-")
        if digits.isdigit():
            yield file, int(digits), drawn, PREVIEWED, PREVIEWS


def samples(told: Told) -> Listed:
    """Folders of `sra2 sample`."""
    for file in sorted(told.run.path.glob("samples/*/samples.json")):
        about = record(file)
        if about.get("complete") and (found := drawn_at(about)):
            yield file.with_name("grid.png"), *found, "samples"


def judged(told: Told) -> Listed:
    """What `sra2 eval RUN` drew first."""
    for file in sorted(told.run.path.glob("evals/*.png")):
        how = record(file.with_suffix(".json")).get("how")
        if isinstance(how, dict) and (found := drawn_at(how)):
            yield file, *found, "drawn to be judged"


def record(file: Path) -> dict[str, Any]:
    """What a JSON file says; {} if it cannot be read, which `evaluations` says."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def drawn_at(about: Mapping[str, Any]) -> tuple[int, dict[str, Any], int] | None:
    """(step, sampling, images) of a record; None where it does not say."""
    step, drawn, count = about.get("step"), about.get("sampling"), about.get("num")
    if not isinstance(step, int) or not isinstance(drawn, dict) or not isinstance(count, int):
        return None
    return step, drawn, count


def packed(
    found: Sequence[Series], runs: Sequence[Told], budget: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Series as the page holds them, in at most `budget` characters, and what is left out.

    Each: {"label", "note", "steps", "frames": [{"run", "step", "src", "alt", "width"}]}.
    """
    left_out: list[str] = []
    files = [file for series in found for file in series.frames.values()]
    tried = [image for file in spread(files, PROBED) if (image := opened(file, [])) is not None]
    for most, side, quality in TIERS:
        thin = [series.thinned(most) for series in found]
        files = [file for series in thin for file in series.frames.values()]
        if quality is None and 3 * sum(f.stat().st_size for f in files if f.exists()) > budget:
            continue
        sizes = [len(encoded(image, side, quality)) for image in tried]
        if sum(sizes) * len(files) > budget * len(sizes):
            continue
        left_out = []
        images = ((file, opened(file, left_out)) for file in files)
        made = {f: (encoded(i, side, quality), i.width) for f, i in images if i is not None}
        if sum(len(url) for url, _ in made.values()) <= budget:
            pages = [
                as_page(small, series, made, runs, quality)
                for small, series in zip(thin, found, strict=True)
            ]
            return [page for page in pages if page["frames"]], left_out
    if len(found) < 2:
        return [], [*left_out, "the grids of samples are too many for one page"]
    fewer, left_out = packed(found[: len(found) // 2], runs, budget)
    said = f"{len(found) - len(found) // 2} other ways of drawing: the page is full"
    return fewer, [*left_out, said]


def spread(files: Sequence[Path], most: int) -> list[Path]:
    """Some of them, spread evenly."""
    return list(files[:: max(1, -(-len(files) // most))])


def opened(file: Path, left_out: list[str]) -> Image.Image | None:
    """A grid; None, and why, where it cannot be read."""
    try:
        return Image.fromarray(read_image(file))
    except DataError as error:
        left_out.append(f"{file}: {error}")
        return None


def encoded(image: Image.Image, side: int, quality: int | None) -> str:
    """A grid as a data URL, its longer side at most `side` pixels."""
    if max(image.size) > side:
        times = side / max(image.size)
        size = (max(1, round(image.width * times)), max(1, round(image.height * times)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    kept = io.BytesIO()
    if quality is None:
        image.save(kept, "webp", lossless=True, method=2)
    else:
        image.save(kept, "webp", quality=quality)
    return f"data:image/webp;base64,{base64.b64encode(kept.getvalue()).decode()}"


def as_page(
    series: Series,
    whole: Series,
    made: Mapping[Path, tuple[str, int]],
    runs: Sequence[Told],
    quality: int | None,
) -> dict[str, Any]:
    """A series as the page holds it, without grids that could not be read."""
    frames: list[dict[str, Any]] = []
    for (run, step), file in sorted(series.frames.items()):
        if file in made:
            url, width = made[file]
            alt = f"{series.count} images of {runs[run].name} after {step:,} steps"
            frames.append({"run": run, "step": step, "src": url, "width": width, "alt": alt})
    steps, all_steps = ({at[1] for at in s.frames} for s in (series, whole))
    note = [] if quality is None else ["compressed to fit this page"]
    if len(steps) < len(all_steps):
        note.append(f"{len(steps)} of {len(all_steps)} steps are shown")
    shown = sorted({frame["step"] for frame in frames})
    return {"label": series.label, "note": "; ".join(note), "steps": shown, "frames": frames}
