"""sra2 sample: run or checkpoint → images."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sra2cli.core import console, hub, pictures, processes
from sra2cli.core.environment import environment
from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.files import write_json
from sra2cli.core.processes import Group
from sra2cli.data import npz
from sra2cli.data.class_names import names_of
from sra2cli.data.prompts import say_cut
from sra2cli.encoders.first_stage import FirstStage
from sra2cli.runs.network import Network
from sra2cli.sampling.draw import HALF, cast_once, draw
from sra2cli.sampling.folder import drawn_image, image_file, prepare
from sra2cli.sampling.opening import (
    Options,
    check_guide,
    first_stage_of,
    scale_of,
    with_text_encoder,
)
from sra2cli.sampling.settings import Sampling

WRITERS = 4  # threads that compress PNGs
GRID = 100  # at most so many images in grid.png
CHECKED = 1000  # prompts that are looked at for what is cut
MOST = 10**8  # images of a folder: more than any metric asks for


@dataclass(frozen=True)
class Drawing:
    """Images 0, 1, … num - 1 of a network, to be drawn in one way."""

    source: Path
    network: Network
    first_stage: FirstStage
    num: int
    sampling: Sampling
    options: Options

    @property
    def about(self) -> dict[str, Any]:
        """How they are made, for samples.json."""
        network, vae = self.network, self.first_stage
        return {
            "source": str(self.source),
            **network.about,
            "num": self.num,
            "sampling": self.sampling.to_dict(),
            "path": network.path,
            "vae": {"name": vae.name, "fingerprint": vae.fingerprint, "decoder": vae.decoder},
            **scale_of(vae),
            "heads": network.model.config.to_dict().get("heads"),
            "precision": self.options.precision,
            "compiled": self.options.compile,
            "device": vae.device.type,
            "classes": network.model.shape.classes,
            **self.told,
        }

    @property
    def told(self) -> dict[str, Any]:
        """What read the prompts, for samples.json."""
        prompts = self.sampling.prompts
        if prompts is None or prompts.encoder is None:
            return {}
        encoder = prompts.encoder
        store = self.network.store
        return {
            "text_encoder": {"name": encoder.name, "fingerprint": encoder.fingerprint},
            **({"crop": store.crop} if store else {}),  # of what it was trained on
        }

    @property
    def name(self) -> str:
        """Of a folder, so that it tells sets of one run apart."""
        network, sampling, plain = self.network, self.sampling, Sampling()
        parts = [] if network.step is None else [f"step{network.step:07d}"]
        parts += [f"{sampling.solver}{sampling.steps}", f"cfg{sampling.cfg:g}"]
        if sampling.interval != plain.interval:
            parts.append(f"{sampling.interval[0]:g}to{sampling.interval[1]:g}")
        if sampling.cfg_channels is not None:
            parts.append(f"channels{sampling.cfg_channels}")
        if sampling.class_cfg is not None:
            parts.append(f"class{sampling.class_cfg:g}")
        if sampling.self_guidance != plain.self_guidance:
            parts.append(f"self{sampling.self_guidance:g}")
        if sampling.self_interval != plain.self_interval:
            parts.append(f"{sampling.self_interval[0]:g}to{sampling.self_interval[1]:g}")
        if sampling.shift != plain.shift:
            parts.append(f"shift{sampling.shift:.4g}")
        if sampling.labels != plain.labels:
            parts.append(sampling.labels.replace(",", "-")[:20])
        if sampling.prompts is not None:
            parts.append(f"prompts-{sampling.prompts.digest[:8]}")
        if network.about["weights"] == "model":
            parts.append("model")
        if self.options.precision not in (None, "fp32"):
            parts.append(str(self.options.precision))
        return "-".join([*parts, f"n{self.num}", f"seed{sampling.seed}"])

    @property
    def labels(self) -> list[int] | None:
        """Of each image; None for an unconditional model."""
        return self.sampling.labels_of(range(self.num), self.network.model.shape)

    @property
    def prompts(self) -> list[str] | None:
        """Of each image; None for a network that is told none."""
        prompts = self.sampling.prompts
        return None if prompts is None else prompts.texts(range(self.num), self.sampling.seed)

    @property
    def captions(self) -> list[str] | None:
        """What pictures of them say below each: its prompt, or the name of its class."""
        names, labels = self.network.class_names, self.labels
        return names_of(labels, names) if labels and names else self.prompts

    def fill(
        self,
        what: str,
        missing: Sequence[Sequence[int]],
        keep: Callable[[Sequence[int], np.ndarray], None],
        group: Group,
    ) -> None:
        """Draw those of the missing parts that are this process's; `keep` each with its images."""
        model, kind, precision = self.network.model, self.network.path, self.options.precision
        guide, dtype = self.network.guide, HALF.get(precision or "fp32")
        for module in (model, guide):
            if module is not None:
                module.to(group.device)
                if dtype is not None:
                    cast_once(module, dtype)
        if self.options.compile:
            model.compile_blocks()
        group.wait()  # all share out the same list
        with console.progress(what, self.num, start=self.num - sum(map(len, missing))) as bar:
            for part in missing[group.rank :: group.count]:
                images = draw(
                    model,
                    self.first_stage,
                    part,
                    self.sampling,
                    kind=kind,
                    precision=precision or "fp32",
                    guide=guide,
                    batch=min(self.options.batch, self.num),
                )
                keep(part, images)
                bar.advance(min(len(part) * group.count, self.num))


def plan(source: Path, num: int, sampling: Sampling, options: Options, group: Group) -> Drawing:
    """What is to be drawn, checked. Raises as `sample`."""
    options = options.on(group.device)
    source = hub.pinned(source, offline=options.offline)
    network = options.open(source, verify=group.main, guide=sampling.self_guidance != 1.0)
    sampling = sampling.of_classes(network.class_names, network.model.shape)
    sampling.check(network.model.shape)
    check_guide(network, sampling)
    if sampling.solver == "edm" and network.path != "linear":
        raise SetupError(
            f"--solver edm is for the linear path; {source} has the {network.path} one"
        )
    vae = first_stage_of(network, options, device=group.device)
    sampling = with_text_encoder(sampling, network, options, device=group.device)
    if group.main and sampling.prompts is not None:
        say_cut(sampling.prompts, range(min(num, CHECKED)), sampling.seed)
    return Drawing(source, network, vae, num, sampling, options)


def sample(
    source: Path,
    *,
    num: int,
    sampling: Sampling,
    options: Options | None = None,
    out: Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Draw `num` images into a folder of PNGs, with grid.png and samples.json.

    Run again, only missing images are drawn; of several processes, each draws its share.

    Args:
        source: a run folder, or a checkpoint of SiT, REPA, SRA or ours (see checkpoints.py), also
            by its hub name.

    Raises:
        SetupError: no run or checkpoint, settings that mean nothing, or a folder of other samples.
        DataError: a damaged checkpoint.
    """
    options = options or Options()
    if num < 1 or options.batch < 1:
        raise SetupError("--num and --batch must be above 0")
    if num > MOST:
        raise SetupError(f"--num {num:,}: at most {MOST:,} images go into one folder")
    with processes.group(device) as group:
        drawing = plan(source, num, sampling, options, group)
        about = drawing.about
        out = out or drawing.network.samples / drawing.name
        group.meet(out, about={**about, "source": None})
        with prepare(out, about) if group.main else nullcontext():
            group.wait()
            fill(out, drawing, group)
            group.wait()
            if group.main:
                finish(out, drawing, group.device)
        group.wait()
        return {**about, "out": str(out), "grid": str(out / "grid.png")}


def fill(out: Path, drawing: Drawing, group: Group) -> None:
    """Draw the missing images that are this process's; threads write them, a part behind."""
    missing = [i for i in range(drawing.num) if not image_file(out, i).exists()]
    batch = drawing.options.batch
    parts = [missing[k : k + batch] for k in range(0, len(missing), batch)]

    writing: list[Future[None]] = []
    with ThreadPoolExecutor(WRITERS) as pool:

        def keep(part: Sequence[int], images: np.ndarray) -> None:
            for written in writing:
                written.result()
            writing[:] = [
                pool.submit(pictures.save, Image.fromarray(image), image_file(out, i))
                for i, image in zip(part, images, strict=True)
            ]

        drawing.fill("sample", parts, keep, group)
        for written in writing:
            written.result()


def finish(out: Path, drawing: Drawing, device: str) -> None:
    """The grid, the .npz if asked for, and a record that says it is complete."""
    num = drawing.num
    missing = [i for i in range(num) if not image_file(out, i).exists()]
    if missing:
        raise DataError(f"{image_file(out, missing[0])} is missing: run the same command again")
    shown = [drawn_image(out, i) for i in range(min(num, GRID))]
    columns = 10 if len(shown) >= 20 else max(1, round(len(shown) ** 0.5))
    pictures.sheet(shown, drawing.captions, columns=columns).save(out / "grid.png")
    if drawing.options.npz:
        write_npz(out, num)
    done = {"complete": True, "labels": drawing.labels, "environment": environment(device)}
    told = {} if drawing.prompts is None else {"prompts": drawing.prompts}
    write_json(out / "samples.json", {**drawing.about, **done, **told})


def write_npz(out: Path, num: int) -> None:
    """OUT/samples.npz with `arr_0` (num, H, W, 3) uint8, image by image: memory stays small."""
    with (
        npz.Writer(out / "samples.npz", num) as writer,
        console.progress("samples.npz", num) as bar,
    ):
        for i in range(num):
            writer.add_image(drawn_image(out, i))
            bar.advance()
        writer.finish({})
