"""sra2 eval RUN: images drawn from a network go straight into the metrics.

They are drawn in parts of `batch` images. The features of a part lie in a file until all are there:
a killed evaluation goes on, and several processes share the parts. Features are summed in the
order of the images, so the numbers depend on neither.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sra2cli import __version__
from sra2cli.config.reading import checked, read_json
from sra2cli.core import console, pictures
from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.files import hold, is_full, listing_digest, sync, utf8, write_json
from sra2cli.core.processes import Group
from sra2cli.evaluation.extractors import Collected, Collector, Extractor, Wanted, check_features
from sra2cli.evaluation.image_sets import Seen
from sra2cli.evaluation.judge import Judge, Result, refuse_prompts
from sra2cli.evaluation.judging import MODELS, Judging
from sra2cli.runs.network import Network
from sra2cli.sampling.opening import Options
from sra2cli.sampling.sample import Drawing, plan
from sra2cli.sampling.settings import Sampling

FILES = ("ref", "weights", *MODELS.values())  # of Judging


class NetworkJudge:
    """Draws images of networks and judges them; what judging needs is opened once for all.

    Of several processes, all must call it alike: each draws its share, the main one judges.

    Args:
        first_stage: fingerprint of that of what was trained; None: not known.

    Raises:
        SetupError: no such metric or weights, or one that does not fit what was trained.
    """

    def __init__(self, judging: Judging, group: Group, *, first_stage: str | None):
        self.judging, self.group = judging, group
        self.judged = Judge(judging, device=group.device, first_stage=first_stage, later=True)

    def judge(
        self,
        source: Path,
        *,
        num: int,
        sampling: Sampling,
        options: Options,
        out: Path | None = None,
    ) -> dict[str, Any]:
        """Draw `num` images of a run or checkpoint and judge them.

        The result is also written to `out`, by default RUN/evals, with a picture of the first
        images. One that is there already, of the same images, reference and settings, is returned.

        Returns:
            What `evaluate` returns, on every process; "asked": what it is of; "file": where it is.

        Raises:
            SetupError, DataError: as `sample` and `evaluate`.
        """
        if num < 2:
            raise SetupError(f"--num is at least 2, not {num}: statistics need two images")
        group, judging, judged = self.group, self.judging, self.judged
        drawing = plan(source, num, sampling, replace(options, batch=judging.batch), group)
        about, labels, prompts = drawing.about, drawing.labels, drawing.prompts
        refuse_prompts(judged.names, prompts)
        asked = {**about, "source": None, **fingerprints(judging)}
        asked |= {"metric": ",".join(judged.names), "network": judged.extractor.fingerprint}
        if judged.beside:
            asked["beside"] = [extractor.fingerprint for extractor in judged.beside]
        asked |= {"sra2": __version__}
        folder = out or results_folder(drawing.network)
        file = folder / f"{drawing.name}-{digest_of(asked)}.json"
        needed, captions = judged.needed(labels), drawing.captions
        parts = Parts(file, num, judging, judged.together, needed, captions=captions)
        group.meet(folder, about=asked)
        row: dict[str, Any] | None = group.share(known(file, asked) if group.main else None)
        if row is not None:
            console.say(f"already judged: {file}")
            for warning in row["warnings"]:
                console.warn(warning)
            if group.main:
                parts.clear()
            return {**row, "file": str(file)}
        with parts.held() if group.main else nullcontext():
            if group.main:
                _ = judged.reference  # what is missing is said before anything is drawn
            group.wait()
            parts.fill(drawing, group)
            group.wait()
            if group.main:
                fake, seen = parts.collect(str(drawing.source), labels, prompts)
                row = judged.result(seen, fake, labels=labels, how=about)
                row |= {"file": str(file), "asked": asked}
                write_json(file, row)
                parts.remove()
        row = group.share(row)
        assert row is not None
        return {**row, "file": str(file)}


def results_folder(network: Network) -> Path:
    """RUN/evals; for files, which may lie side by side, one of their own."""
    samples = network.samples
    return samples.with_name("evals" if network.run else f"{samples.name}-evals")


def digest_of(asked: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]


class Parts:
    """Features of images that are being drawn: a file a part, in a folder beside their result.

    captions: of the images, for the picture of the first of them.

    A part's file holds every wanted feature (B, width) and the SHA-256 of its pixels.
    """

    def __init__(
        self,
        target: Path,
        num: int,
        judging: Judging,
        extractor: Extractor,
        need: Wanted,
        *,
        captions: Sequence[str] | None = None,
    ):
        self.captions = captions
        self.folder = utf8(target).with_name(f"{target.stem}.partial")
        self.preview = target.with_name(f"{target.stem}.png")
        self.extractor, self.need, self.crop, self.num = extractor, need, judging.crop, num
        self.kept = need.features
        self.parts = [range(k, min(k + judging.batch, num)) for k in range(0, num, judging.batch)]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep others from drawing the same."""
        busy = f"another evaluation is filling {self.folder}: wait for it"
        with hold(self.folder / ".lock", busy):
            yield

    def file(self, part: Sequence[int]) -> Path:
        return self.folder / f"{part[0]:08d}.safetensors"

    def fill(self, drawing: Drawing, group: Group) -> None:
        """Draw the missing parts that are this process's."""
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [part for part in self.parts if not self.file(part).exists()]
        drawing.fill("draw and judge", missing, self.write, group)

    def write(self, part: Sequence[int], images: np.ndarray) -> None:
        """The features of one part, whole or not at all."""
        resized = self.crop is not None and not self.crop.fits(*images.shape[1:3])
        if self.crop is not None and resized:
            images = np.stack([self.crop(image) for image in images])
        if part[0] == 0:
            first = pictures.sheet(list(images[:100]), self.captions, columns=10)
            pictures.save(first, self.preview)
        found = self.extractor.run(images)
        check_features(self.extractor, found, part[0])  # before they are kept
        kept = {name: found[name].cpu().contiguous() for name in self.kept}
        about = {"pixels": hashlib.sha256(images.tobytes()).hexdigest()}
        about["size"] = json.dumps(images.shape[1:3])
        about["resized"] = str(len(part) if resized else 0)
        scratch = self.file(part).with_suffix(".partial")
        try:
            save_file(kept, scratch, metadata=about)
        except SafetensorError as error:  # it hides why it could not write
            if is_full(self.folder):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
            raise DataError(f"{scratch} cannot be written: {error}") from None
        sync(scratch)
        scratch.replace(self.file(part))

    def collect(
        self, source: str, labels: list[int] | None, prompts: list[str] | None = None
    ) -> tuple[Collected, Seen]:
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
        seen = Seen(source, self.num, labels, size, resized, digest.hexdigest(), prompts=prompts)
        return collector.finish(), seen

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

    def clear(self) -> None:
        """Remove what a kill left behind when the result was there, if nobody is at it."""
        if self.folder.exists():
            with suppress(SetupError), self.held():
                self.remove()

    def remove(self) -> None:
        """Features that are no longer needed; the folder is held."""
        shutil.rmtree(self.folder, ignore_errors=True)


def known(file: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The result that an earlier call left for the same images, reference and settings."""
    try:
        row: dict[str, Any] = read_json(file, Result)
        for name in row["settings"]["metrics"]:
            checked(float, row.get(name))
    except (OSError, ValueError):
        return None
    return row if row.get("asked") == asked else None


def fingerprints(judging: Judging) -> dict[str, str]:
    """Settings as text; files with sizes and dates, so that a changed reference is seen."""
    found = {}
    values = {field.name: getattr(judging, field.name) for field in fields(judging)}
    for name, value in sorted(values.items()):
        if name == "offline" or (name in MODELS.values() and value is None):
            continue  # what older results do not say either
        found[name] = str(value)
        if value is not None and name in FILES:
            found[name] += f" ({listing_digest(str(value))})"
    return found
