"""How the runs of an ablation are carried out and judged: as the paper's, or as the digits'."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sra2cli import console, digits, npz, paper, scores
from sra2cli.batches import check_store
from sra2cli.cells import Judged
from sra2cli.encoding import Options
from sra2cli.errors import SetupError
from sra2cli.extract import extract
from sra2cli.generate import PRESETS, Sampling
from sra2cli.recipe import differing, load
from sra2cli.reference import is_npz, lacks, open_extractor
from sra2cli.settings import Recipe
from sra2cli.store import Store

DIGITS_SAMPLES = 500
OWN = ("name", "seed", "log", "train.precision", "train.compile", "train.micro_batch")


@dataclass(frozen=True)
class How:
    """How an ablation is carried out.

    seeds: runs of each cell. shard: (i, n), this command's share of the cells, 1 <= i <= n.
    jobs: cells at a time; None: one on a GPU, one for each core on the digits.
    step: checkpoint that is judged; None: the last.
    The rest are options of `sra2 eval`.
    """

    seeds: int = 1
    shard: tuple[int, int] = (1, 1)
    jobs: int | None = None
    step: int | None = None
    metrics: str | None = None
    ref: str | None = None
    weights: Path | None = None
    num: int | None = None
    preset: str | None = None
    solver: str | None = None
    steps: int | None = None
    device: str | None = None
    processes: int | None = None
    offline: bool = False

    def common(self) -> list[str]:
        """Options that `train` and `eval` both take."""
        found = [] if self.device is None else ["--device", self.device]
        found += [] if self.processes is None else ["--processes", str(self.processes)]
        return [*found, *(["--offline"] if self.offline else [])]


def on_digits(recipe: Recipe) -> bool:
    """Whether a recipe's first stage is the packaged one."""
    return recipe.data.vae is not None and recipe.data.vae == load("digits-sit").data.vae


def data_of(base: Recipe, data: Path | None, out: Path) -> Path:
    """The store, checked against the recipe; the digits' own is made here."""
    if data is None:
        if not on_digits(base):
            raise SetupError("--data: a latent store, from `sra2 extract`")
        data, images = out / "digits.h5", out / "digits"
        if not data.exists():
            console.say(f"writing scikit-learn's digits to {images} and encoding them")
            digits.write_folder(images)
            extract(images, data, Options(vae="digits", resolution=digits.RESOLUTION), device="cpu")
    store = Store(data)
    check_store(store, base)
    return data


def judging(base: Recipe, how: How, steps: tuple[int, ...]) -> Judged:
    """Options of `sra2 eval`: the paper's protocol, or that of fd-digits; then what was asked."""
    small = on_digits(base)
    names = scores.parse(how.metrics or ("fd-digits" if small else ",".join(scores.PAPERS)))
    check_judging(names, how)
    preset = how.preset or ("digits" if small else None)
    num = how.num or (DIGITS_SAMPLES if small else paper.SAMPLES)
    given = {
        "--metrics": ",".join(names),
        "--num": num,
        "--preset": preset,
        "--solver": how.solver,
        "--steps": how.steps,
        "--ref": how.ref,
        "--weights": how.weights,
    }
    options = [str(part) for k, v in given.items() if v is not None for part in (k, v)]
    chosen: dict[str, Any] = {**PRESETS.get(preset or "", {})}
    chosen |= {k: v for k, v in (("solver", how.solver), ("steps", how.steps)) if v is not None}
    about = {"num": num, **Sampling(**chosen).to_dict()}
    about.pop("seed")
    return Judged(steps, tuple(options), names, about)


def check_judging(names: Sequence[str], how: How) -> None:
    """Refuse now what would be missing after days of training: reference and weights."""
    compared = [name for name in names if scores.METRICS[name].needs != "score"]
    stands_in = scores.METRICS[names[0]].network == "digits"
    if compared and how.ref is None and not stands_in:
        raise SetupError(
            f"{', '.join(compared)}: compared with what? Give --ref: an .npz as ADM's, or images"
        )
    if how.ref is not None and not Path(how.ref).exists():
        raise SetupError(f"no reference {how.ref}")
    extractor = open_extractor(names, how.weights, "cpu")
    if how.ref is not None and is_npz(how.ref):
        keys = npz.keys_of(Path(how.ref))
        for name in compared:
            missing = lacks(name, extractor, keys)
            if missing:
                raise SetupError(f"{how.ref} has no {missing}: {name} cannot be computed with it")


def workers(base: Recipe, how: How) -> tuple[int, int | None]:
    """Cells at a time, and threads of each: one on the digits, which is fastest for them."""
    cores = os.cpu_count() or 1
    if on_digits(base):
        return how.jobs or (1 if how.device and how.device != "cpu" else cores), 1
    jobs = how.jobs or 1
    return jobs, max(1, cores // jobs) if jobs > 1 else None


def differences(base: Recipe, judged: Judged) -> list[str]:
    """What is not as in the paper's Table 1, a line each: ours, and the paper's in brackets."""
    theirs = load(paper.RECIPE)
    found = [
        f"{key}: {ours} (paper: {value})"
        for key, ours, value in differing(base, theirs, ignore=OWN)
    ]
    sampling = {"num": paper.SAMPLES, **Sampling().to_dict()}
    found += [
        f"sampling {key}: {value} (paper: {sampling[key]})"
        for key, value in judged.about.items()
        if value != sampling[key]
    ]
    if not set(judged.metrics) <= set(paper.METRICS):
        found.append(f"metric: {', '.join(judged.metrics)} (paper: {', '.join(paper.METRICS)})")
    return found
