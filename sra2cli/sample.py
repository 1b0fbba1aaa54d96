"""sra2 sample: run or checkpoint → images."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sra2cli import console, pictures
from sra2cli.errors import DataError, SetupError
from sra2cli.files import write_atomically
from sra2cli.generate import Sampling, draw, labels_of
from sra2cli.networks import Network, Weights, open_network
from sra2cli.run import environment
from sra2cli.vae import Vae, load_vae

GRID = 100  # at most so many images in grid.png
PUBLISHED_VAE = "stabilityai/sd-vae-ft-ema"  # what the published checkpoints are decoded with


def sample(
    source: Path,
    *,
    num: int,
    sampling: Sampling,
    step: int | None = None,
    weights: Weights = "ema",
    out: Path | None = None,
    vae: str | None = None,
    batch: int = 64,
    num_heads: int | None = None,
    device: str = "cpu",
    offline: bool = False,
) -> dict[str, Any]:
    """Draw `num` images into a folder of PNGs, with grid.png and samples.json.

    Run again, only missing images are drawn.

    Args:
        source: a run folder, or a checkpoint of SiT, REPA, SRA or ours (see checkpoints.py).
        step: of a run's checkpoint; None: the newest.
        vae: decode with it; None: the one of the run's store, or `PUBLISHED_VAE`.
        num_heads: for checkpoints of sizes that are not in the table.

    Raises:
        SetupError: no run or checkpoint, settings that mean nothing, or a folder of other samples.
        DataError: a damaged checkpoint.
    """
    if num < 1 or batch < 1:
        raise SetupError("--num and --batch must be above 0")
    network = open_network(source, step=step, weights=weights, num_heads=num_heads)
    model = network.model.to(device)
    sampling.check(model.config.classes)
    first_stage = open_first_stage(network, vae, device=device, offline=offline)
    about = {
        "source": str(source),
        **network.about,
        "num": num,
        "sampling": sampling.to_dict(),
        "path": network.path,
        "vae": {"name": first_stage.name, "fingerprint": first_stage.fingerprint},
        "precision": "fp32",
        "classes": model.config.classes,
    }
    out = out or network.samples / default_name(
        network.step, num, sampling, network.about["weights"]
    )
    prepare(out, about)
    missing = [i for i in range(num) if not image_file(out, i).exists()]
    with console.progress("sample", num, start=num - len(missing)) as bar:
        for k in range(0, len(missing), batch):
            part = missing[k : k + batch]
            images = draw(model, first_stage, part, sampling, kind=network.path)
            for i, image in zip(part, images, strict=True):
                save_png(image_file(out, i), image)
            bar.advance(len(part))
    shown = [np.asarray(Image.open(image_file(out, i))) for i in range(min(num, GRID))]
    pictures.grid(shown, columns=10 if len(shown) >= 20 else max(1, round(len(shown) ** 0.5))).save(
        out / "grid.png"
    )
    labels = labels_of(range(num), sampling, model.config.classes)
    done = {**about, "complete": True, "labels": labels, "environment": environment(device)}
    write_atomically(out / "samples.json", json.dumps(done, indent=1) + "\n")
    return {**about, "out": str(out), "grid": str(out / "grid.png")}


def open_first_stage(network: Network, name: str | None, *, device: str, offline: bool) -> Vae:
    """The VAE to decode with; where the network's store is known, its encoder must be the same."""
    info = network.store
    vae = load_vae(name or (info.vae if info else PUBLISHED_VAE), device=device, offline=offline)
    if info:
        vae.check_store(info.vae_fingerprint, info.vae, "this run's store")
    if vae.channels != network.model.config.channels:
        raise SetupError(
            f"VAE '{vae.name}' has {vae.channels} latent channels, the network "
            f"{network.model.config.channels}: choose another --vae"
        )
    return vae


def default_name(step: int | None, num: int, sampling: Sampling, weights: str) -> str:
    """A folder name that tells sample sets of one run apart."""
    plain = replace(Sampling(), solver=sampling.solver, steps=sampling.steps, seed=sampling.seed)
    parts = [] if step is None else [f"step{step:07d}"]
    parts += [f"{sampling.solver}{sampling.steps}", f"cfg{sampling.cfg:g}"]
    if sampling.interval != plain.interval:
        parts.append(f"{sampling.interval[0]:g}to{sampling.interval[1]:g}")
    if sampling.labels != plain.labels:
        parts.append(sampling.labels.replace(",", "-")[:20])
    if weights == "model":
        parts.append(weights)
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
