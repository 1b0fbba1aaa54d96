"""Encoding images into a store, against one image at a time: images/s, and the ratio.

    python benchmarks/extract.py                       # the digits VAE at 32 px, 7,188 files
    python benchmarks/extract.py --vae sd --resolution 256 --images 24    # SD-VAE's architecture

Both load the VAE, read the same files and encode them; decoding is included. One at a time is
what the peers do: open, crop, encode, next. Ours is all of `sra2 extract`: worker
processes, checksums and writing to the disk. The two take turns. Prints a table and writes
benchmarks/results/extract.json.
"""

import argparse
import datetime
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sra2cli.core import console
from sra2cli.core.environment import environment
from sra2cli.data import digits
from sra2cli.data.images import read_image
from sra2cli.data.sources import open_source
from sra2cli.data.store import Store
from sra2cli.encoders.vae import load_vae
from sra2cli.extraction.extract import extract
from sra2cli.extraction.makers import Options

RESULTS = Path(__file__).parent / "results" / "extract.json"


def write_images(root: Path, resolution: int, count: int) -> None:
    """Digits as PNGs; above 32 px, JPEGs of 1.5 times the resolution with noise on them."""
    images, labels = digits.load_digits()
    noise = np.random.default_rng(0)
    for i in range(count):
        path = root / str(labels[i % len(images)]) / f"{i:06d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(images[i % len(images)])
        if resolution <= 32:
            image.save(path.with_suffix(".png"))
            continue
        side = resolution * 3 // 2
        large = np.asarray(image.resize((side, side))).astype(np.int16)
        large += noise.integers(-20, 20, large.shape, dtype=np.int16)
        Image.fromarray(large.clip(0, 255).astype(np.uint8)).save(path.with_suffix(".jpg"))


def sd_architecture(folder: Path) -> str:
    """An AutoencoderKL of SD-VAE's shape with random weights, saved."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[128, 256, 512, 512],
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.18215,
    ).save_pretrained(folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--vae", default="digits", help="'digits', 'sd', or any --vae of extract")
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--images", type=int, default=7188)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {"one at a time": [], "sra2 extract": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_images(folder / "images", arguments.resolution, arguments.images)
        name = sd_architecture(folder / "vae") if arguments.vae == "sd" else arguments.vae
        source = open_source(folder / "images")
        options = Options(vae=name, resolution=arguments.resolution)

        def single() -> np.ndarray:
            vae, found = load_vae(name, device=arguments.device), []
            for file in source.names:
                image = read_image(folder / "images" / file, arguments.resolution)
                found.append(vae.encode(torch.tensor(image)[None]).cpu().numpy())
            return np.concatenate(found)

        def ours(round_: int) -> Path:
            out = folder / f"{round_}.h5"
            extract(folder / "images", out, options, device=arguments.device)
            return out

        for round_ in range(arguments.rounds):
            begun = time.perf_counter()
            expected = single()
            seconds["one at a time"].append(time.perf_counter() - begun)
            begun = time.perf_counter()
            store = Store(ours(round_))
            seconds["sra2 extract"].append(time.perf_counter() - begun)
            found = store.moments(np.arange(len(store))).numpy()
            difference = float(np.abs(found - expected).max())
            assert difference < 1e-5, difference
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    rates = {k: arguments.images / statistics.median(v) for k, v in seconds.items()}
    title = f"{arguments.vae} VAE, {arguments.resolution} px, {arguments.device}"
    rows = [(name, f"{rate:,.1f}") for name, rate in rates.items()]
    rows.append(("median ratio", f"{statistics.median(ratios):.2f}"))
    rows.append(("range", f"{min(ratios):.2f} – {max(ratios):.2f}"))
    rows.append(("largest difference of a latent", f"{difference:.1e}"))
    console.print_table(title, ("", "images/s"), rows)
    result = {
        "date": datetime.date.today().isoformat(),
        "environment": environment(arguments.device),
        "arguments": vars(arguments),
        "images_per_second": rates,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "largest_difference": difference,
    }
    written = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    written[title] = result
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
