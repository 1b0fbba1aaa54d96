"""sra2 vae: images → a first stage that every `--vae FOLDER` takes."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from sra2cli.core import console, pictures
from sra2cli.core.processes import Group
from sra2cli.data.sources import Choice, Source, open_source
from sra2cli.encoders.vae import Vae, load_vae
from sra2cli.first_stages.folder import CONFIG, SHEET, STATE, VaeFolder
from sra2cli.first_stages.judge import psnr, reconstructed, sheet
from sra2cli.first_stages.pixels import ENOUGH, Pixels, check_source, load, some
from sra2cli.first_stages.settings import VaeSettings
from sra2cli.first_stages.statistics import say_statistics
from sra2cli.first_stages.trainer import Trainer, encoder_of
from sra2cli.training.stopping import Stop

ROWS = 50  # steps between rows of metrics
GLANCE = 100  # images that are judged while training
WEIGHTS = "diffusion_pytorch_model.safetensors"


def train(
    images: Path,
    out: Path,
    wanted: VaeSettings,
    *,
    choice: Choice,
    device: str = "cpu",
    save_every: int = 500,
    workers: int | None = None,
    offline: bool = False,
) -> dict[str, Any]:
    """Train a first stage; run again, it goes on where it stopped.

    Args:
        images: any source of images. save_every: steps between checkpoints.
        workers: processes that decode; None: as many as the cores allow.

    Returns:
        What it is and what it is worth, as vae.json keeps it under "result".

    Raises:
        SetupError: no images, or OUT belongs to other settings or images.
        DataError: images that are gone, or a loss that is not finite.
        SystemExit: after a signal, when everything is saved.
    """
    source = opened(images, choice)
    folder = VaeFolder(out, wanted)
    try:
        if folder.result is not None and folder.names == names_digest(source):
            console.say(f"{out} is complete already")
            return folder.result
        pixels = load(source, wanted, workers=workers)
        encoder = encoder_of(wanted, device=device, offline=offline)
        about: dict[str, Any] = {"path": str(images.resolve()), "names": names_digest(source)}
        about |= {"digest": pixels.digest, "count": len(pixels.trained) + len(pixels.held_out)}
        folder.begin(about, None if encoder is None else encoder.fingerprint, device)
        if folder.result is not None:  # the same images by other names
            return folder.result
        trainer = Trainer(wanted, pixels.trained, device=device, encoder=encoder)
        state = folder.state()
        if state is not None:
            trainer.load(state, str(out / STATE))
            console.say(f"resuming {out} at step {trainer.step:,}")
        loop(trainer, folder, pixels, save_every=save_every)
        return finish(trainer, folder, pixels)
    finally:
        folder.close()


def opened(images: Path, choice: Choice) -> Source:
    """The source; says how it was read."""
    source = open_source(images, choice)
    check_source(source)
    for line in source.notes:
        console.say(line)
    return source


def names_digest(source: Source) -> str:
    """What tells whether a source has other images, without reading them."""
    names = "\0".join(source.names).encode("utf-8", "surrogateescape")
    return hashlib.blake2b(names, digest_size=16).hexdigest()


def loop(trainer: Trainer, folder: VaeFolder, pixels: Pixels, *, save_every: int) -> None:
    """Train to the last step; a signal saves and stops."""
    steps, stopped = trainer.wanted.steps, 0
    folder.cut_rows(trainer.step)
    trainer.rest()
    with (
        Stop(Group(device=str(trainer.device))) as stop,
        console.progress(f"vae {folder.path.name}", steps, unit="steps", start=trainer.step) as bar,
    ):
        while trainer.step < steps and not stopped:
            trainer.update()
            (stopped,) = stop.agree()
            saving = trainer.step % save_every == 0 or trainer.step == steps or bool(stopped)
            note = None
            if trainer.step % ROWS == 0 or saving:
                row = trainer.row()
                folder.row(row)
                terms = {k: v for k, v in row.items() if k not in ("step", "images_per_second")}
                note = " ".join(f"{name} {value:.4f}" for name, value in terms.items())
            bar.advance(note=note)
            if saving:
                folder.save(trainer.state())
            if saving and not stopped and trainer.step < steps:
                glance(trainer, folder, pixels)
    if stopped:
        console.say(
            f"stopped at step {trainer.step:,}, saved in {folder.path}: run the same command again "
            "to go on"
        )
        raise SystemExit(128 + stopped)


def glance(trainer: Trainer, folder: VaeFolder, pixels: Pixels) -> None:
    """The PSNR of some images now, and a picture of them."""
    few = some(pixels.judged, GLANCE)
    back = reconstructed(trainer.judged(), few)
    folder.row({"step": trainer.step, "event": "psnr", "psnr": psnr(few, back)})
    pictures.save(sheet(few, back), folder.path / SHEET)
    trainer.rest()


def finish(trainer: Trainer, folder: VaeFolder, pixels: Pixels) -> dict[str, Any]:
    """Measure the latents, write the first stage, and judge what was written."""
    wanted, device = trainer.wanted, str(trainer.device)
    vae = trainer.judged()
    if wanted.dtype == "float16":
        vae.model.half().float()  # the values that are stored
    statistics = say_statistics(vae, wanted, pixels.trained)
    made = vae.model.half() if wanted.dtype == "float16" else vae.model
    with folder.room_for(".made") as scratch:
        shutil.rmtree(scratch, ignore_errors=True)
        made.save_pretrained(scratch)
    vae = load_vae(str(scratch), device=device)
    result = {
        "vae": str(folder.path),
        "vae_fingerprint": vae.fingerprint,
        "step": trainer.step,
        "parameters": sum(p.numel() for p in vae.model.parameters()),
        "latents": list(wanted.latent),
        "trained_on": len(pixels.trained),
        "held_out": len(pixels.held_out),
        **worth(vae, pixels, folder.path / SHEET),
        "seconds": round(trainer.seconds, 1),
        "statistics": statistics,
    }
    for name in (WEIGHTS, CONFIG):  # the config last: without it, it is no first stage
        os.replace(scratch / name, folder.path / name)
    shutil.rmtree(scratch)
    folder.finish(result)
    return result


def worth(vae: Vae, pixels: Pixels, picture: Path) -> dict[str, float]:
    """PSNR of images that were trained on and of those held out; draws reconstructions."""
    few = some(pixels.trained, ENOUGH)
    found = {"psnr_trained_on": psnr(few, reconstructed(vae, few))}
    back = reconstructed(vae, pixels.judged)
    if len(pixels.held_out):
        found["psnr_held_out"] = psnr(pixels.held_out, back)
    pictures.save(sheet(pixels.judged, back), picture)
    return found
