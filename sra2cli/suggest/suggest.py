"""sra2 suggest: looks at images of one's own, writes a recipe, and says the commands around it."""

import re
import shlex
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from sra2cli.config import recipe as recipes
from sra2cli.core import console
from sra2cli.core.errors import SetupError
from sra2cli.core.files import write_atomically
from sra2cli.data.sources import Choice, open_source
from sra2cli.encoders.open import open_first_stage
from sra2cli.first_stages import settings
from sra2cli.first_stages.pixels import check_source
from sra2cli.first_stages.settings import VaeSettings
from sra2cli.first_stages.trainer import Trainer
from sra2cli.suggest.choose import Sized, choose
from sra2cli.suggest.look import Images, captioned_of, look, machine
from sra2cli.training.plan import measure
from sra2cli.training.trial import make_store, trial

JUDGED = 10_000  # samples at most
WORDS = {"text_tokens": 16, "text_width": 128}  # of `words`, for timing
INCEPTION = (
    "eval needs the weights of Inception, a file of 95 MB: without them it says where to put them"
)


def suggest(
    images: Path,
    *,
    choice: Choice,
    out: Path | None = None,
    vae: str | None = None,
    device: str = "cpu",
    offline: bool = False,
) -> dict[str, Any]:
    """Look at images, write a recipe that fits them and this machine, and say the commands.

    Args:
        out: the recipe; None: NAME.yaml, by the name of the images. vae: a first stage that is
            there; None: one is to be trained.

    Returns:
        What was seen, "recipe", "why", "commands" and "expected" (minutes, timed here).

    Raises:
        SetupError: no images, no such first stage, or the file holds another recipe.
        DataError: no image can be read.
    """
    source = open_source(images, choice)
    check_source(source)
    seen, here = look(source, captioned_of(images, choice)), machine(device)
    sized = choose(seen, here)
    out = out or Path(f"{name_of(images)}.yaml")
    tree = {
        "model": sized.network,
        "align": {"sra2": {"depth": sized.depth}},
        "train": sized.train,
        "log": log_of(sized.train["steps"]),
    }
    write_recipe(out, tree, images, sized)
    wanted = settings.checked({**sized.vae, "resolution": sized.resolution})
    own = vae is None
    channels, latent = wanted.latent[:2]
    if vae is not None:
        opened = open_first_stage(vae, device=device, offline=offline)
        channels, latent = opened.channels, sized.resolution // opened.factor
    expected = {"vae_minutes": time_vae(wanted, device) if own else 0.0}
    data = {"channels": channels, "latent": latent, "classes": seen.classes}
    expected["train_minutes"] = time_training(tree, data, seen, device)
    return {
        "images": asdict(seen),
        "machine": asdict(here),
        "notes": source.notes,
        "recipe": str(out),
        "why": [*sized.why, INCEPTION],
        "expected": {name: round(value, 1) for name, value in expected.items()},
        "commands": commands(images, out, sized, seen, choice, vae),
    }


def name_of(images: Path) -> str:
    """A file name from that of the images."""
    return re.sub(r"[^\w.-]+", "-", images.stem or images.resolve().name).strip("-.") or "mine"


def log_of(steps: int) -> dict[str, int]:
    """A checkpoint and a picture after each quarter."""
    quarter = max(1, steps // 4)
    return {
        "every": 20 if steps < 20_000 else 100,
        "save_every": quarter,
        "keep_every": quarter,
        "preview_every": quarter,
    }


def write_recipe(out: Path, tree: dict[str, Any], images: Path, sized: Sized) -> None:
    """The recipe with its reasons.

    Raises:
        SetupError: there is a file that says something else.
    """
    head = [f"{sized.what} + SRA 2 on {images.name}, by `sra2 suggest`.", *sized.why]
    lines = "".join(f"# {' '.join(line.split())}\n" for line in head)
    text = lines + recipes.text_of(tree)
    recipes.from_dict({**tree, "name": "suggested"})
    if out.exists() and out.read_text(encoding="utf-8", errors="replace") != text:
        raise SetupError(f"{out} is there and says something else: remove it, or choose --out")
    write_atomically(out, text)


def time_vae(wanted: VaeSettings, device: str) -> float:
    """Minutes that training the first stage takes, by a step of random images."""
    shape = (wanted.batch, wanted.resolution, wanted.resolution, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    trainer = Trainer(wanted, pixels, device=device, encoder=None)
    times = []
    with console.progress("timing the first stage", 2, unit="steps") as bar:
        for _ in range(2):
            begun = time.perf_counter()
            trainer.update()
            trainer.row()  # waits for the device
            times.append(time.perf_counter() - begun)
            bar.advance()
    return min(times) * wanted.steps / 60


def time_training(tree: dict[str, Any], data: dict[str, Any], seen: Images, device: str) -> float:
    """Minutes that training takes, by a step on a store of random latents, without compiling."""
    text = WORDS if seen.told == "text" else {}
    wanted = recipes.from_dict({**tree, "name": "suggested", "data": {**data, **text}})
    wanted = replace(wanted, train=replace(wanted.train, compile=False))
    with tempfile.TemporaryDirectory() as scratch:
        store = make_store(Path(scratch), wanted, 2 * wanted.train.batch, features=False)
        training, _ = trial(wanted, store, device, encoder=False)
        seconds, _ = measure(training, training.objective(), device)
    return seconds * wanted.train.batch * wanted.train.steps / 60


def commands(
    images: Path, out: Path, sized: Sized, seen: Images, choice: Choice, vae: str | None
) -> list[str]:
    """First stage, store, training, numbers, pictures: each as it is typed."""
    name, side = out.stem, str(sized.resolution)
    given = [part for key, value in choice.given.items() for part in (option(key), value)]
    made, kept = vae or f"{name}-vae", f"{name}.h5"
    if Path(kept).absolute() == images.absolute():
        kept = f"{name}-latents.h5"
    lines: list[list[str]] = []
    if vae is None:
        chosen = [part for key, value in sized.vae.items() for part in (option(key), shown(value))]
        lines.append(["vae", str(images), "--out", made, "--resolution", side, *chosen, *given])
    text = ["--text-encoder", "words"] if seen.told == "text" else []
    store = [kept, "--vae", made, "--resolution", side]
    lines.append(["extract", str(images), "--out", *store, *text, *given])
    run = f"runs/{name}"
    lines.append(["train", "--recipe", str(out), "--data", kept, "--out", run])
    drawn = ["--solver", "euler", "--steps", "50"]
    if seen.told == "class":
        drawn += ["--labels", "balanced"]
    if seen.told == "text":
        drawn += ["--prompts", kept, "--cfg", "2"]
    ref = str(images)
    if given:  # of a reference nothing can be chosen
        ref = f"{name}-stats.npz"
        lines.append(["eval", str(images), *given, "--crop", side, "--save-stats", ref])
    count = str(min(seen.count, JUDGED))
    judged = ["--ref", ref, "--crop", side, "--metrics", "fid,kid", "--num", count]
    lines.append(["eval", run, *judged, *drawn])
    guided = ["--cfg", "1.5"] if seen.told == "class" else []
    lines.append(["sample", run, "--num", "36", *drawn, *guided])
    return [shlex.join(["sra2", *line]) for line in lines]


def option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def shown(value: Any) -> str:
    """A value as an option takes it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
