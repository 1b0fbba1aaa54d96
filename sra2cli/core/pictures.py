"""Pictures for people: sample grids and curves, as PNG."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CAPTIONED = 128  # pixels that a picture with a caption has across, at least
FONT = "mpl-data/fonts/ttf/DejaVuSans.ttf"
TEXT, LINES = 11, 4  # size of a caption in pixels, and how many lines it may have


@contextmanager
def figure(path: Path, width: float, height: float, dpi: int = 130) -> Iterator[Any]:
    """A figure of so many inches, saved when it is done."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    yield made
    made.savefig(path, dpi=dpi)


def named(axis: Any, x: str, y: str) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.3)


def save(image: Image.Image, path: Path) -> None:
    """As a PNG that is whole or not there."""
    scratch = path.with_name(f"{path.name}.partial")
    image.save(scratch, format="png")
    scratch.replace(path)


def grid(images: Sequence[np.ndarray], *, columns: int, margin: int = 2) -> Image.Image:
    """Images (H, W, 3) uint8, row by row, on white."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    size = (columns * (width + margin) + margin, rows * (height + margin) + margin)
    sheet = Image.new("RGB", size, "white")
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        at = (margin + column * (width + margin), margin + row * (height + margin))
        sheet.paste(Image.fromarray(image), at)
    return sheet


def sheet(
    images: Sequence[np.ndarray], captions: Sequence[str] | None, *, columns: int
) -> Image.Image:
    """A grid of images (H, W, 3) uint8, with the caption of each where there are some."""
    if captions is None:
        return grid(images, columns=columns)
    return captioned_grid(images, captions[: len(images)], columns=columns)


def captioned_grid(
    images: Sequence[np.ndarray], captions: Sequence[str], *, columns: int
) -> Image.Image:
    """Images (H, W, 3) uint8, row by row, each with its caption under it; small ones enlarged."""
    from PIL import ImageDraw, ImageFont

    height, width = images[0].shape[:2]
    times = -(-CAPTIONED // width)
    width, height, margin = times * width, times * height, 6
    matplotlib = find_spec("matplotlib")  # its font; importing it would make folders in the home
    assert matplotlib is not None and matplotlib.origin is not None
    font = ImageFont.truetype(str(Path(matplotlib.origin).parent / FONT), TEXT)
    lines = [_wrapped(caption, font, width) for caption in captions]
    below = (TEXT + 3) * max(map(len, lines)) + 4
    rows, across = -(-len(images) // columns), min(columns, len(images))
    size = (across * (width + margin) + margin, rows * (height + below + margin) + margin)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        x, y = margin + column * (width + margin), margin + row * (height + below + margin)
        picture = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(picture, (x, y))
        for number, line in enumerate(lines[i]):
            draw.text((x, y + height + 2 + number * (TEXT + 3)), line, fill="black", font=font)
    return sheet


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    """Lines of at most `width` pixels; at most `LINES`, the last cut off with an ellipsis."""
    lines = [""]
    for word in text[:400].split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > LINES or len(text) > 400:
        lines = [*lines[:LINES][:-1], f"{lines[:LINES][-1]} …"]
    return [_fitting(line, font, width) for line in lines]


def _fitting(line: str, font: Any, width: int) -> str:
    while len(line) > 1 and font.getlength(line) > width:
        line = line[:-2] + "…"
    return line


def titles(captions: Sequence[str]) -> list[str]:
    """Captions as names of columns: in lines, cut where they are long."""
    return ["\n".join(textwrap.wrap(caption, 17)[:4]) for caption in captions]


def side_by_side(parts: Sequence[tuple[str, Image.Image]], path: Path) -> None:
    """Titled pictures in one row, in one PNG."""
    width = sum(p.width for _, p in parts)
    height = max(p.height for _, p in parts)
    with figure(path, 10, 10 * height / width + 0.5) as made:
        for axis, (title, picture) in zip(
            made.subplots(1, len(parts), squeeze=False)[0], parts, strict=True
        ):
            axis.imshow(np.asarray(picture), interpolation="nearest")
            axis.set_title(title)
            axis.axis("off")


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: Path,
    *,
    x: str,
    y: str,
) -> None:
    """Named (x, y) curves in one plot."""
    with figure(path, 7, 4.2) as made:
        axis = made.subplots()
        for name, (xs, ys) in series.items():
            axis.plot(xs, ys, label=name, linewidth=1.5)
        named(axis, x, y)
        axis.legend()


def labelled_rows(
    rows: Sequence[tuple[str, Sequence[np.ndarray]]], columns: Sequence[str], path: Path
) -> None:
    """Rows of images (H, W, 3) with a title at the left of each, and names above the columns."""
    count = max(len(images) for _, images in rows)
    with figure(path, 1.3 * count + 1.6, 1.35 * len(rows) + 0.3, dpi=150) as made:
        axes = made.subplots(len(rows), count, squeeze=False)
        for row, (name, images) in enumerate(rows):
            for column, image in enumerate(images):
                axis = axes[row][column]
                axis.imshow(image, interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
                for side in axis.spines.values():
                    side.set_visible(False)
                if row == 0 and column < len(columns):
                    axis.set_title(columns[column], fontsize=9)
            axes[row][0].set_ylabel(name, fontsize=9, rotation=0, ha="right", va="center")


def swept(
    panels: Sequence[tuple[str, Sequence[float]]],
    path: Path,
    *,
    x: str,
    labels: Sequence[str],
    xs: Sequence[float] | None,
) -> None:
    """A panel for each (y, values), over xs; None: over the labels."""
    with figure(path, 4.2 * len(panels) + 0.6, 3.6) as made:
        for axis, (y, values) in zip(
            made.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            if xs is None:
                axis.plot(range(len(values)), values, "o")
                axis.set_xticks(range(len(values)), labels, rotation=20, ha="right")
            else:
                axis.plot(xs, values, marker="o", linewidth=1.5)
            named(axis, x, y)


def points(
    panels: Sequence[tuple[str, str, Sequence[tuple[str, float, float]], float | None]],
    path: Path,
    *,
    x: str,
) -> None:
    """Panels beside each other: (title, y, [(label, value, spread)], value of a dashed line)."""
    with figure(path, 5 * len(panels), 3.6) as made:
        axes = made.subplots(1, len(panels), squeeze=False)[0]
        for axis, (title, y, found, line) in zip(axes, panels, strict=True):
            labels = [label for label, _, _ in found]
            values, spreads = [value for _, value, _ in found], [spread for _, _, spread in found]
            axis.errorbar(range(len(found)), values, yerr=spreads, fmt="o", capsize=4)
            if line is not None:
                axis.axhline(line, linestyle="--", linewidth=1, color="grey")
            axis.set_xticks(range(len(found)), labels, rotation=20, ha="right")
            axis.set_title(title, fontsize=10)
            named(axis, x, y)


def curves_with_spread(
    series: Mapping[str, Sequence[tuple[float, float, float]]],
    path: Path,
    *,
    x: str,
    y: str,
    theirs: Mapping[str, Sequence[tuple[float, float]]],
) -> None:
    """Named curves through points (x, value, spread); crosses at others' (x, value)."""
    with figure(path, 7, 4.2) as made:
        axis = made.subplots()
        for name, found in series.items():
            xs, values, spreads = zip(*found, strict=True)
            (line, _, _) = axis.errorbar(
                xs, values, yerr=spreads, marker="o", capsize=4, label=name
            )
            if name in theirs:
                others, known = zip(*theirs[name], strict=True)
                label = f"{name}, the paper's"
                axis.plot(others, known, "x", markersize=9, color=line.get_color(), label=label)
        named(axis, x, y)
        axis.legend()


def pca_sheet(
    title: str,
    top: Sequence[tuple[str, np.ndarray]],
    rows: Sequence[tuple[str, Sequence[np.ndarray]]],
    columns: Sequence[str],
    path: Path,
) -> None:
    """Large titled pictures above a grid with named rows and columns."""
    width = 1.5 * len(columns) + 0.8
    with figure(path, width, 1.55 * len(rows) + 2.9, dpi=150) as made:
        made.suptitle(title, fontsize=10)
        parts: Any = made.subfigures(2, 1, height_ratios=[2.4, 1.5 * len(rows)])
        upper, lower = parts
        for axis, (name, image) in zip(
            upper.subplots(1, len(top), squeeze=False)[0], top, strict=True
        ):
            axis.imshow(image, interpolation="nearest")
            axis.set_title(name, fontsize=9)
            axis.axis("off")
        axes = lower.subplots(len(rows), len(columns), squeeze=False)
        for number, (line, (name, images)) in enumerate(zip(axes, rows, strict=True)):
            for axis, column, image in zip(line, columns, images, strict=True):
                axis.imshow(image, interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
                if number == 0:
                    axis.set_title(column, fontsize=9)
            line[0].set_ylabel(name, fontsize=9)


def probe_sheet(
    panels: Sequence[tuple[str, Sequence[int], Sequence[Mapping[str, float]]]],
    measures: Sequence[tuple[str, str]],
    path: Path,
) -> None:
    """A column a network: (title, blocks, [{"t", "block", measure}]); a row of panels a measure:
    (measure, label); a curve for each noise level."""
    size = (4.6 * len(panels) + 0.6, 3.8 * len(measures))
    with figure(path, *size, dpi=150) as made:
        grid = made.subplots(len(measures), len(panels), squeeze=False, sharey="row")
        for axes, (measure, label) in zip(grid, measures, strict=True):
            for axis, (title, blocks, rows) in zip(axes, panels, strict=True):
                for t in sorted({row["t"] for row in rows}):
                    values = {row["block"]: row[measure] for row in rows if row["t"] == t}
                    axis.plot(blocks, [values[b] for b in blocks], marker="o", label=f"t = {t:g}")
                few = len(blocks) <= 14
                shown = blocks if few else blocks[:: -(-len(blocks) // 14)]
                axis.set_xticks(shown, ["x_t" if b == 0 else str(b) for b in shown])
                axis.set_title(title, fontsize=10)
                axis.set_xlabel("block")
                axis.grid(alpha=0.3)
            axes[0].set_ylabel(label)
        grid[0][-1].legend(fontsize=8)
