"""sra2 eval RUN: images drawn from a network go straight into the metrics.

They are drawn in parts of `batch` images. The features of a part lie in a file until all are there:
a killed evaluation goes on, and several processes share the parts. Features are summed in the
order of the images, so the numbers depend on neither.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sra2cli import console, pictures, processes
from sra2cli.errors import DataError, SetupError
from sra2cli.evaluate import BATCH, check_batch, choose, impossible, needed, result_of
from sra2cli.features import Collected, Collector, Extractor, Wanted
from sra2cli.files import sync, write_atomically
from sra2cli.generate import Sampling, draw, labels_of
from sra2cli.images import center_crop
from sra2cli.imagesets import Seen
from sra2cli.metrics import Distances
from sra2cli.networks import Network, open_network
from sra2cli.processes import Group
from sra2cli.reference import open_extractor, open_reference
from sra2cli.sample import Options, default_name, describe, open_first_stage
from sra2cli.vae import Vae


@dataclass(frozen=True)
class Judging:
    """How images are judged; as the arguments of `evaluate`. batch: also of the images drawn."""

    metric: str | None = None
    ref: str | None = None
    weights: Path | None = None
    crop: int | None = None
    distances: Distances = "float16"
    batch: int = BATCH


def judge_network(
    source: Path,
    *,
    num: int,
    sampling: Sampling,
    options: Options,
    judging: Judging,
    device: str = "cpu",
    out: Path | None = None,
) -> dict[str, Any]:
    """Draw `num` images of a run or checkpoint and judge them.

    The result is also written to `out`, by default RUN/evals, with a picture of the first images.
    A result that is there already, of the same images, reference and settings, is returned.

    Returns:
        What `evaluate` returns, on every process; "asked": what the result is of.

    Raises:
        SetupError, DataError: as `sample` and `evaluate`.
    """
    check_batch(judging.batch, judging.crop)
    if num < 2:
        raise SetupError(f"--num is at least 2, not {num}: statistics need two images")
    names = choose(judging.metric, judging.ref, statistics_alone=False)
    with processes.group(device) as group:
        network = open_network(
            source, step=options.step, weights=options.weights, num_heads=options.num_heads
        )
        sampling.check(network.model.config.classes)
        vae = open_first_stage(network, options, device=group.device)
        extractor = open_extractor(names, judging.weights, group.device)
        about = describe(source, network, vae, num, sampling, options)
        asked = {**about, "source": None, **fingerprints(judging), "network": extractor.fingerprint}
        out = out or network.samples.parent / "evals"
        file = out / f"{default_name(network, num, sampling, options)}.json"
        row = known(file, asked)
        group.wait()  # all have looked before one writes
        if row is not None:
            return row
        left_out = [] if judging.metric else impossible(names, extractor, judging.ref)
        names = tuple(name for name in names if name not in left_out)
        real = None
        if group.main:  # first: what is missing is said before anything is drawn
            real = open_reference(
                judging.ref, extractor, names, crop=judging.crop, batch=judging.batch
            )
        labels = labels_of(range(num), sampling, about["classes"])
        need = needed(names, extractor, labels)
        parts = Parts(file.with_suffix(""), str(source), asked, num, judging, extractor, need)
        parts.fill(network, vae, sampling, options, group)
        group.wait()
        if group.main:
            fake, seen = parts.collect(labels)
            result = result_of(
                seen,
                fake,
                extractor,
                real,
                names,
                labels=labels,
                how=about,
                left_out=left_out,
                crop=judging.crop,
                batch=judging.batch,
                distances=judging.distances,
                device=group.device,
            )
            write_atomically(
                file, json.dumps({**result, "file": str(file), "asked": asked}, indent=1) + "\n"
            )
            parts.remove()
        group.wait()
        row = known(file, asked)
        assert row is not None
        return row


class Parts:
    """Features of images that are being drawn: a file a part, in a folder named by what they are.

    A part's file holds every wanted feature (B, width) and the SHA-256 of its pixels.
    """

    def __init__(
        self,
        target: Path,
        source: str,
        asked: dict[str, Any],
        num: int,
        judging: Judging,
        extractor: Extractor,
        need: Wanted,
    ):
        kept = sorted(need.moments | need.rows | ({"logits"} if need.score else set()))
        text = json.dumps([asked, kept, judging.batch], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        self.folder = target.with_name(f"{target.name}.{digest}.partial")
        self.preview = target.with_suffix(".png")
        self.extractor, self.need, self.kept, self.crop = extractor, need, kept, judging.crop
        self.source, self.num = source, num
        self.parts = [range(k, min(k + judging.batch, num)) for k in range(0, num, judging.batch)]

    def file(self, part: range) -> Path:
        return self.folder / f"{part.start:08d}.safetensors"

    def fill(
        self, network: Network, vae: Vae, sampling: Sampling, options: Options, group: Group
    ) -> None:
        """Draw the missing parts that are this process's."""
        self.folder.mkdir(parents=True, exist_ok=True)
        model = network.model.to(group.device)
        if options.compile:
            for block in model.blocks:
                block.compile()
        missing = [part for part in self.parts if not self.file(part).exists()]
        group.wait()  # all share out the same list
        done = self.num - sum(map(len, missing))
        with console.progress("draw and judge", self.num, start=done) as bar:
            for part in missing[group.rank :: group.count]:
                self.write(
                    part,
                    draw(
                        model, vae, part, sampling, kind=network.path, precision=options.precision
                    ),
                )
                bar.advance(min(len(part) * group.count, self.num))

    def write(self, part: range, images: np.ndarray) -> None:
        """The features of one part, whole or not at all."""
        resized = self.crop is not None and images.shape[1] != self.crop
        if self.crop is not None and resized:
            images = np.stack([center_crop(Image.fromarray(i), self.crop) for i in images])
        if part.start == 0:
            sheet = pictures.grid(list(images[:100]), columns=10)
            scratch = self.preview.with_suffix(".png.partial")
            sheet.save(scratch, format="png")
            scratch.replace(self.preview)
        found = self.extractor.run(images)
        kept = {name: found[name].cpu().contiguous() for name in self.kept}
        about = {"pixels": hashlib.sha256(images.tobytes()).hexdigest()}
        about["size"] = json.dumps(images.shape[1:3])
        about["resized"] = str(len(part) if resized else 0)
        scratch = self.file(part).with_suffix(".partial")
        save_file(kept, scratch, metadata=about)
        sync(scratch)
        scratch.replace(self.file(part))

    def collect(self, labels: list[int] | None) -> tuple[Collected, Seen]:
        """What is wanted of all features, and what was seen of the images."""
        collector, digest = Collector(self.extractor, self.need), hashlib.sha256()
        size: tuple[int, int] | None = None
        resized = 0
        for features, about in self.read():
            collector.take(features)
            digest.update(about["pixels"].encode())
            height, width = json.loads(about["size"])
            size = (height, width)
            resized += int(about["resized"])
        return collector.finish(), Seen(
            self.source, self.num, labels, size, resized, digest.hexdigest()
        )

    def read(self) -> Iterator[tuple[dict[str, Tensor], dict[str, str]]]:
        """Features and record of each part, in order."""
        for part in self.parts:
            try:
                with safe_open(self.file(part), "pt") as stored:
                    features = {name: stored.get_tensor(name) for name in self.kept}
                    about = stored.metadata()
            except (OSError, SafetensorError) as error:
                raise DataError(
                    f"{self.file(part)} cannot be read ({error}): delete it and run again"
                ) from None
            yield features, about

    def remove(self) -> None:
        shutil.rmtree(self.folder)


def known(file: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The result that an earlier call left for the same images, reference and settings."""
    try:
        row: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return row if row.get("asked") == asked else None


def fingerprints(judging: Judging) -> dict[str, str]:
    """Settings as text; files with size and date, so that a changed reference is seen."""
    found = {}
    for name, value in sorted(asdict(judging).items()):
        found[name] = str(value)
        if value is not None and name in ("ref", "weights") and Path(str(value)).is_file():
            about = Path(str(value)).stat()
            found[name] += f" ({about.st_size} bytes, {about.st_mtime_ns})"
    return found
