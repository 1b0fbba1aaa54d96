"""sra2 sample: run or checkpoint → images."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sra2cli.config.settings import Precision
from sra2cli.core import console, pictures, processes
from sra2cli.core.environment import environment
from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.files import write_atomically
from sra2cli.core.processes import Group
from sra2cli.data import npz
from sra2cli.encoders.first_stage import FirstStage
from sra2cli.encoders.open import PUBLISHED, open_first_stage
from sra2cli.runs.network import Network, Weights, open_network
from sra2cli.sampling.draw import draw
from sra2cli.sampling.settings import Sampling

GRID = 100  # at most so many images in grid.png


@dataclass(frozen=True)
class Options:
    """What to draw from, and how; weights, vae, precision and compile change the images.

    step: of a run's checkpoint; None: the newest.
    vae: decode with it; None: the one of the run's store, or `PUBLISHED`.
    batch: images at a time. npz: also write OUT/samples.npz, as ADM's evaluator takes it.
    num_heads, kind: as checkpoints.load takes them.
    """

    step: int | None = None
    weights: Weights = "ema"
    vae: str | None = None
    batch: int = 64
    precision: Precision = "fp32"
    compile: bool = False
    npz: bool = False
    num_heads: int | None = None
    kind: str | None = None
    offline: bool = False


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
        source: a run folder, or a checkpoint of SiT, REPA, SRA or ours (see checkpoints.py).

    Raises:
        SetupError: no run or checkpoint, settings that mean nothing, or a folder of other samples.
        DataError: a damaged checkpoint.
    """
    options = options or Options()
    if num < 1 or options.batch < 1:
        raise SetupError("--num and --batch must be above 0")
    with processes.group(device) as group:
        network = open_network(
            source,
            step=options.step,
            weights=options.weights,
            num_heads=options.num_heads,
            kind=options.kind,
            verify=group.main,
        )
        sampling.check(network.model.shape)
        vae = first_stage_of(network, options, device=group.device)
        about = describe(source, network, vae, num, sampling, options)
        out = out or network.samples / default_name(network, num, sampling, options)
        if group.main:
            prepare(out, about)
        group.wait()
        fill(out, num, network, vae, sampling, options, group)
        group.wait()
        if group.main:
            labels = sampling.labels_of(range(num), network.model.shape)
            finish(out, about, labels, options, group.device)
        group.wait()
        return {**about, "out": str(out), "grid": str(out / "grid.png")}


def describe(
    source: Path, network: Network, vae: FirstStage, num: int, sampling: Sampling, options: Options
) -> dict[str, Any]:
    """How the samples are made, for samples.json."""
    return {
        "source": str(source),
        **network.about,
        "num": num,
        "sampling": sampling.to_dict(),
        "path": network.path,
        "vae": {"name": vae.name, "fingerprint": vae.fingerprint, "decoder": vae.decoder},
        "heads": network.model.config.to_dict().get("heads"),
        "precision": options.precision,
        "compiled": options.compile,
        "device": vae.device.type,
        "classes": network.model.shape.classes,
    }


def fill(
    out: Path,
    num: int,
    network: Network,
    vae: FirstStage,
    sampling: Sampling,
    options: Options,
    group: Group,
) -> None:
    """Draw the missing images that are this process's."""
    model = network.model.to(group.device)
    if options.compile:
        model.compile_blocks()
    missing = [i for i in range(num) if not image_file(out, i).exists()]
    group.wait()  # all share out the same list
    parts = [missing[k : k + options.batch] for k in range(0, len(missing), options.batch)]
    with console.progress("sample", num, start=num - len(missing)) as bar:
        for part in parts[group.rank :: group.count]:
            images = draw(
                model, vae, part, sampling, kind=network.path, precision=options.precision
            )
            for i, image in zip(part, images, strict=True):
                save_png(image_file(out, i), image)
            bar.advance(len(part) * group.count)


def finish(
    out: Path,
    about: dict[str, Any],
    labels: list[int] | None,
    options: Options,
    device: str,
) -> None:
    """The grid, the .npz if asked for, and a record that says it is complete."""
    num = about["num"]
    missing = [i for i in range(num) if not image_file(out, i).exists()]
    if missing:
        raise DataError(f"{image_file(out, missing[0])} is missing: run the same command again")
    shown = [np.asarray(Image.open(image_file(out, i))) for i in range(min(num, GRID))]
    columns = 10 if len(shown) >= 20 else max(1, round(len(shown) ** 0.5))
    pictures.grid(shown, columns=columns).save(out / "grid.png")
    if options.npz:
        write_npz(out, num)
    done = {**about, "complete": True, "labels": labels, "environment": environment(device)}
    write_atomically(out / "samples.json", json.dumps(done, indent=1) + "\n")


def write_npz(out: Path, num: int) -> None:
    """OUT/samples.npz with `arr_0` (num, H, W, 3) uint8, image by image: memory stays small."""
    with (
        npz.Writer(out / "samples.npz", num) as writer,
        console.progress("samples.npz", num) as bar,
    ):
        for i in range(num):
            writer.add_image(np.asarray(Image.open(image_file(out, i))))
            bar.advance()
        writer.finish({})


def first_stage_of(network: Network, options: Options, *, device: str) -> FirstStage:
    """The VAE to decode with; where the network's store is known, its encoder must be the same."""
    info = network.store
    name = options.vae or (info.vae if info else PUBLISHED)
    vae = open_first_stage(name, device=device, offline=options.offline)
    if info:
        vae.check_store(info.vae_fingerprint, info.vae, "this run's store")
    if vae.channels != network.model.shape.channels:
        raise SetupError(
            f"VAE '{vae.name}' has {vae.channels} latent channels, the network "
            f"{network.model.shape.channels}: choose another --vae"
        )
    return vae


def default_name(network: Network, num: int, sampling: Sampling, options: Options) -> str:
    """A folder name that tells sample sets of one run apart."""
    plain = Sampling()
    parts = [] if network.step is None else [f"step{network.step:07d}"]
    parts += [f"{sampling.solver}{sampling.steps}", f"cfg{sampling.cfg:g}"]
    if sampling.interval != plain.interval:
        parts.append(f"{sampling.interval[0]:g}to{sampling.interval[1]:g}")
    if sampling.cfg_channels is not None:
        parts.append(f"channels{sampling.cfg_channels}")
    if sampling.labels != plain.labels:
        parts.append(sampling.labels.replace(",", "-")[:20])
    if network.about["weights"] == "model":
        parts.append("model")
    if options.precision != "fp32":
        parts.append(options.precision)
    return "-".join([*parts, f"n{num}", f"seed{sampling.seed}"])


def prepare(out: Path, about: dict[str, Any]) -> None:
    """Make the folder, or take it up again if it holds samples made in this very way."""
    record = out / "samples.json"
    if record.exists():
        try:
            before = json.loads(record.read_text())
            drawn = int(before["num"])
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{record} is damaged: choose another --out") from None
        differ = [k for k in about if before.get(k) != about[k] and k not in ("num", "source")]
        if differ:
            raise SetupError(
                f"{out} holds other samples (differs in {', '.join(differ)}): choose another --out"
            )
        if drawn > about["num"]:
            raise SetupError(f"{out} holds {drawn} samples already: choose another --out")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SetupError(f"{out} is not empty: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(record, json.dumps({**about, "complete": False}, indent=1) + "\n")


def image_file(out: Path, index: int) -> Path:
    return out / f"{index:06d}.png"


def save_png(path: Path, image: np.ndarray) -> None:
    """Write one PNG so that a kill leaves none or a whole one."""
    scratch = path.with_suffix(".partial")
    Image.fromarray(image).save(scratch, format="png")
    scratch.replace(path)
