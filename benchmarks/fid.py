"""FID of two folders, end to end: `sra2 eval` beside torch-fidelity's own command, in turns.

    python benchmarks/fid.py                          # 2,000 images a folder; 3 rounds
    python benchmarks/fid.py --images 200 --rounds 12

Whole processes, from their start to the number, each at its defaults, nothing cached. The network
is the published one where torch's cache has its weights, else the same network with random
weights: times do not depend on them, and the two numbers must agree on any. Images are noise of
256 px, as samples of ImageNet are. Prints the ratio and writes benchmarks/results/fid.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import write
from PIL import Image

from sra2cli.core import console
from sra2cli.evaluation.inception import default_file
from sra2cli.tables.timing import middle_half

SIDE = 256
EVAL = (  # random weights are no published ones, which our command would say
    "from sra2cli.evaluation import inception; inception.SHA256 = ''; "
    "from sra2cli.cli import start; start()"
)


def make_images(folder: Path, count: int, seed: int) -> None:
    """Smooth noise: PNGs of a picture's size on the disk."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for number in range(count):
        small = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        large = Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        large.save(folder / f"{number:06d}.png")


def make_weights(file: Path) -> Path:
    """Of torch-fidelity's network, random, so that activations keep their scale."""
    import torch_fidelity.feature_extractor_inceptionv3 as theirs

    network = theirs.FeatureExtractorInceptionV3
    theirs.load_state_dict_from_url = lambda *_, **__: {}
    load, network.load_state_dict = network.load_state_dict, lambda *_: None
    model = network("inception-v3-compat", ["2048"])
    network.load_state_dict = load
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, generator=generator)
    torch.save(model.state_dict(), file)
    return file


def commands(folder: Path, weights: Path) -> dict[str, list[str]]:
    """What a user of either would type; both print JSON."""
    a, b, cpu = str(folder / "a"), str(folder / "b"), not torch.cuda.is_available()
    ours = ["eval", a, "--ref", b, "--metrics", "fid", "--inception", str(weights), "--json"]
    theirs = ["--input1", a, "--input2", b, "--fid", "--json", "--no-cache", "--silent"]
    theirs += [
        "--feature-extractor-weights-path",
        str(weights),
        *(["--cpu"] if cpu else ["-g", "0"]),
    ]
    entry = "from torch_fidelity.fidelity import main; main()"
    return {
        "ours": [sys.executable, "-c", EVAL, *ours],
        "theirs": [sys.executable, "-c", entry, *theirs],
    }


def run(command: list[str]) -> tuple[float, float]:
    """Seconds of a process, and the FID it found."""
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - begun
    if done.returncode:
        sys.exit(f"{done.stderr}\nfailed: {' '.join(command)}")
    found = json.loads(done.stdout[done.stdout.index("{") :])
    value = found.get("frechet_inception_distance", found.get("metrics", found).get("fid"))
    return seconds, float(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    how = parser.parse_args()
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    values: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder, published = Path(scratch), default_file()
        weights = published if published.is_file() else make_weights(folder / "random.pth")
        for seed, name in enumerate("ab"):
            make_images(folder / name, how.images, seed)
        sides = commands(folder, weights)
        for number in range(how.rounds):
            console.say(f"round {number + 1} of {how.rounds}")
            for name in sides if number % 2 else reversed(sides):
                taken, values[name] = run(sides[name])
                seconds[name].append(taken)
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    result = {
        "images": how.images,
        "published_weights": weights == published,
        "fid": values,
        "seconds": {name: statistics.median(taken) for name, taken in seconds.items()},
        "ratio": statistics.median(ratios),
        "middle_half": middle_half(ratios) if len(ratios) > 1 else None,
        "of_best": min(seconds["theirs"]) / min(seconds["ours"]),
        "rounds": how.rounds,
    }
    rows = [(name, f"{result['seconds'][name]:.1f}", f"{values[name]:.6f}") for name in seconds]  # type: ignore[index]
    console.print_table(f"FID of {how.images} images", ("", "seconds, median", "FID"), rows)
    console.say(f"ours is {result['ratio']:.2f} times as fast")
    write("fid", {f"{how.images} images": result})


if __name__ == "__main__":
    main()
