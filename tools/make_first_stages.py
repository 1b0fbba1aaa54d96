"""First stages of the digits and emoji, as `sra2 vae` makes them, beside the packaged ones.

    OMP_NUM_THREADS=1 python tools/make_first_stages.py digits     # two minutes of one core
    OMP_NUM_THREADS=1 python tools/make_first_stages.py emoji      # 15 minutes to an hour
    python tools/make_first_stages.py emoji --check                # the packaged one alone

The packaged ones are of the same sizes and settings, by a loop that drew its random numbers in
another way. Recipes and recorded numbers hang on their fingerprints, so nothing is written there:
what is made goes to runs/first-stages, and the comparison to benchmarks/results.
"""

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sra2cli.core import console
from sra2cli.core.environment import environment
from sra2cli.data import digits, emoji
from sra2cli.data.sources import CONVENTION
from sra2cli.encoders.vae import Vae, load_vae
from sra2cli.evaluation.digits_classifier import TRAINED_ON, load_classifier
from sra2cli.first_stages.judge import psnr, reconstructed
from sra2cli.first_stages.settings import checked
from sra2cli.first_stages.statistics import drawn_latents
from sra2cli.first_stages.train import train

OUT = Path("runs/first-stages")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
NOISE = (0.1, 0.2, 0.3)  # on scaled latents
COMMON: dict[str, Any] = {"resolution": 32, "held_out": 0.0, "dtype": "float16"}
SETTINGS = {
    # sixteen channels, where four would do: on such latents SRA 2 shows (docs/decisions.md)
    "digits": COMMON
    | {"widths": (16, 32, 48), "channels": 16, "steps": 400, "batch": 48, "lr": 3e-3, "warmup": 0.3}
    | {"kl": 1e-6, "one_scale": True},
    # KL: enough to keep the latents near a normal, little enough to keep detail
    "emoji": COMMON
    | {"widths": (16, 32, 64), "channels": 4, "steps": 7000, "batch": 16, "lr": 2.5e-3}
    | {"mse": 1.0, "gradient": 0.5, "kl": 3e-4, "flip": True, "fold_statistics": True},
}


def pixels(name: str) -> dict[str, np.ndarray]:
    """Images (N, 32, 32, 3) uint8 by part: what the first stage is trained on, and what not."""
    if name == "digits":
        return {"trained on": digits.load_digits()[0]}
    every = emoji.load_emoji()
    return {"trained on": every.part("train").images, "held out": every.part("test").images}


def written(name: str) -> Path:
    """A folder of the images to train on."""
    folder = OUT / f"{name}-images"
    if name == "digits":
        digits.write_folder(folder)
    else:
        emoji.write_folder(folder, form="class")
    return folder


def judged(name: str, vae: Vae) -> dict[str, float]:
    """What a first stage is worth, in dB of PSNR and in deviations of its scaled latents."""
    found = {}
    for part, images in pixels(name).items():
        found[f"PSNR, {part}"] = psnr(images, reconstructed(vae, images))
    images = pixels(name)["trained on"]
    for noise in NOISE:
        found[f"PSNR, noise {noise}"] = psnr(images, noisy(vae, images, noise))
    z = drawn_latents(vae, images, seed=1, step=0) * vae.scale
    stds = z.std(dim=(0, 2, 3))
    found |= {"least deviation": stds.min().item(), "largest": stds.max().item()}
    if name == "digits":
        found["recognised"] = recognised(vae, images[TRAINED_ON:])
    return found


def noisy(vae: Vae, images: np.ndarray, noise: float) -> np.ndarray:
    """What comes back of images with noise on the scaled latents."""
    torch.manual_seed(0)
    back = []
    for part in torch.from_numpy(images).split(64):
        z = vae.encode(part).chunk(2, dim=1)[0] * vae.scale
        back.append(vae.decode(z + noise * torch.randn_like(z), rounding="nearest"))
    return np.concatenate(back)


def recognised(vae: Vae, images: np.ndarray) -> float:
    """How often the classifier, which has not seen these digits, knows what comes back of them."""
    labels = torch.from_numpy(digits.load_digits()[1][TRAINED_ON:])
    with torch.no_grad():
        logits = load_classifier()(torch.from_numpy(reconstructed(vae, images)))[1]
    return (logits.argmax(1) == labels).float().mean().item()


def main() -> None:
    """Make it, unless --check is given, and print both beside each other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=SETTINGS)
    parser.add_argument("--check", action="store_true", help="only judge the packaged one")
    chosen = parser.parse_args()
    name, columns = chosen.name, {"packaged": judged(chosen.name, load_vae(chosen.name))}
    if not chosen.check:
        out = OUT / name
        made = train(written(name), out, checked(SETTINGS[name]), choice=CONVENTION)
        columns["sra2 vae"] = judged(name, load_vae(str(out)))
        about = {"date": datetime.date.today().isoformat(), "environment": environment()}
        result = {**about, "settings": SETTINGS[name], "seconds": made["seconds"], **columns}
        text = json.dumps(result, indent=1) + "\n"
        (RESULTS / f"first-stage-{name}.json").write_text(text, encoding="utf-8")
    rows = [(key, *(f"{c[key]:.3f}" for c in columns.values())) for key in columns["packaged"]]
    console.print_table(f"first stage of the {name}", ("", *columns), rows)


if __name__ == "__main__":
    main()
