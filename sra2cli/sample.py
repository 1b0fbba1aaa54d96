"""sra2 sample: run → images."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from sra2cli import console, pictures
from sra2cli.errors import DataError, SetupError
from sra2cli.generate import Sampling, draw, labels_of
from sra2cli.run import Checkpoint, Run, environment, write_atomically
from sra2cli.sit import SiT, SiTConfig
from sra2cli.vae import Vae, load_vae

Weights = Literal["ema", "model"]
GRID = 100  # at most so many images in grid.png


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
    device: str = "cpu",
    offline: bool = False,
) -> dict[str, Any]:
    """Draw `num` images from a run into a folder of PNGs, with grid.png and samples.json.

    Run again, only missing images are drawn.

    Raises:
        SetupError: no run or checkpoint, settings that mean nothing, or a folder of other samples.
        DataError: a damaged checkpoint.
    """
    if num < 1 or batch < 1:
        raise SetupError("--num and --batch must be above 0")
    run = Run(source)
    sampling.check(run.recipe.data.classes)
    checkpoint = run.checkpoint(step)
    model = load_sit(checkpoint, weights).to(device)
    first_stage = load_first_stage(run, vae, device=device, offline=offline)
    about = {
        "run": str(source),
        "recipe": run.recipe.name,
        "method": run.recipe.method,
        "step": checkpoint.step,
        "weights": weights,
        "checkpoint": checkpoint.meta["files"][f"{weights}.safetensors"],
        "num": num,
        "sampling": sampling.to_dict(),
        "path": run.recipe.path.kind,
        "vae": {"name": first_stage.name, "fingerprint": first_stage.fingerprint},
        "precision": "fp32",
        "classes": run.recipe.data.classes,
    }
    out = out or source / "samples" / default_name(checkpoint.step, num, sampling, weights)
    prepare(out, about)
    missing = [i for i in range(num) if not image_file(out, i).exists()]
    with console.progress("sample", num, start=num - len(missing)) as bar:
        for k in range(0, len(missing), batch):
            part = missing[k : k + batch]
            images = draw(model, first_stage, part, sampling, kind=run.recipe.path.kind)
            for i, image in zip(part, images, strict=True):
                save_png(image_file(out, i), image)
            bar.advance(len(part))
    shown = [np.asarray(Image.open(image_file(out, i))) for i in range(min(num, GRID))]
    pictures.grid(shown, columns=10 if len(shown) >= 20 else max(1, round(len(shown) ** 0.5))).save(
        out / "grid.png"
    )
    labels = labels_of(range(num), sampling, run.recipe.data.classes)
    done = {**about, "complete": True, "labels": labels, "environment": environment()}
    write_atomically(out / "samples.json", json.dumps(done, indent=1) + "\n")
    return {**about, "out": str(out), "grid": str(out / "grid.png")}


def load_sit(checkpoint: Checkpoint, weights: Weights) -> SiT:
    """The network of a checkpoint, in eval mode, without heads."""
    model = SiT(SiTConfig(**checkpoint.meta["sit"]))
    model.load_state_dict(checkpoint.weights(weights))
    return model.eval().requires_grad_(False)


def load_first_stage(run: Run, name: str | None, *, device: str, offline: bool) -> Vae:
    """The VAE the run's store was made with, or `name`; its encoder must be the same one."""
    info = run.store_info
    vae = load_vae(name or info.vae, device=device, offline=offline)
    if vae.fingerprint != info.vae_fingerprint:
        raise SetupError(
            f"VAE '{vae.name}' is not the one of this run's store (encoder {vae.fingerprint}, "
            f"store {info.vae_fingerprint}, made with '{info.vae}'): choose it with --vae"
        )
    return vae


def default_name(step: int, num: int, sampling: Sampling, weights: Weights) -> str:
    """A folder name that tells sample sets of one run apart."""
    plain = replace(Sampling(), solver=sampling.solver, steps=sampling.steps, seed=sampling.seed)
    parts = [f"step{step:07d}", f"{sampling.solver}{sampling.steps}", f"cfg{sampling.cfg:g}"]
    if sampling.interval != plain.interval:
        parts.append(f"{sampling.interval[0]:g}to{sampling.interval[1]:g}")
    if sampling.labels != plain.labels:
        parts.append(sampling.labels.replace(",", "-")[:20])
    if weights != "ema":
        parts.append(weights)
    return "-".join([*parts, f"n{num}", f"seed{sampling.seed}"])


def prepare(out: Path, about: dict[str, Any]) -> None:
    """Make the folder, or take it up again if it holds samples made in this very way."""
    record = out / "samples.json"
    if record.exists():
        try:
            before = json.loads(record.read_text())
        except ValueError:
            raise DataError(f"{record} is damaged: remove {out}") from None
        differ = [k for k in about if before.get(k) != about[k] and k not in ("num", "run")]
        if differ:
            raise SetupError(
                f"{out} holds other samples (differs in {', '.join(differ)}): choose another --out"
            )
        if before["num"] > about["num"]:
            raise SetupError(f"{out} holds {before['num']} samples already: choose another --out")
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
