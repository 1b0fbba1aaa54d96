"""sra2 sample --grid: the same noise and labels drawn from several sources, in one picture.

The paper's Figures 1 and 4.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sra2cli.core import hub, pictures, processes
from sra2cli.data.class_names import names_of
from sra2cli.runs.exported import store_known
from sra2cli.runs.naming import name_of, split_step, title_of
from sra2cli.sampling.folder import drawn_image, record_of
from sra2cli.sampling.opening import Options
from sra2cli.sampling.sample import sample
from sra2cli.sampling.settings import Sampling


def compare(
    sources: Sequence[Path],
    *,
    num: int,
    sampling: Sampling,
    options: Options,
    out: Path | None,
    device: str,
) -> dict[str, Any]:
    """Draw `num` images from each source ("RUN@STEP" chooses a step) and OUT/comparison.png.

    Run again, only missing images are drawn.

    Raises:
        SetupError: as `sample`.
    """
    out = out or Path("comparison")
    with processes.group(device) as group:
        sources = [hub.pinned(source, offline=options.offline) for source in sources]
        rows, folder = drawn(sources, num, sampling, options, out, device)
        picture = out / "comparison.png"
        if group.main:
            about = record_of(folder) or {}
            names = pictures.titles(about.get("prompts") or ())
            names = names or class_names(split_step(sources[0])[0], about.get("labels"))
            pictures.labelled_rows(rows, names, picture)
    return {
        "picture": str(picture),
        "sources": [str(s) for s in sources],
        "num": num,
        "sampling": sampling.to_dict(),
    }


def drawn(
    sources: Sequence[Path],
    num: int,
    sampling: Sampling,
    options: Options,
    out: Path,
    device: str,
) -> tuple[list[tuple[str, list[np.ndarray]]], Path]:
    """A title and images for each source, and the folder of the last."""
    rows: list[tuple[str, list[np.ndarray]]] = []
    folder = out
    for number, source in enumerate(sources):
        path, step = split_step(source, options.step)
        chosen = replace(options, step=step)
        folder = out / f"{number}-{name_of(path)}{'' if chosen.step is None else f'-{chosen.step}'}"
        result = sample(path, num=num, sampling=sampling, options=chosen, out=folder, device=device)
        images = [drawn_image(folder, i) for i in range(num)]
        rows.append((title_of(result, Path(result["source"]), between="\n"), images))
    return rows, folder


def class_names(source: Path, labels: Sequence[int] | None) -> list[str]:
    """What each column shows, as far as the source says what it was trained on."""
    if labels is None:
        return []
    store = store_known(source)
    names = store.class_names if store else []
    return names_of(labels, names)
