"""How the runs of an ablation are carried out and judged: as the paper's, or as the digits'."""

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sra2cli.config.recipe import differing, load
from sra2cli.config.settings import Recipe
from sra2cli.core import console
from sra2cli.core.errors import SetupError
from sra2cli.core.files import held, listing_digest
from sra2cli.data import digits
from sra2cli.data.fitting import fitted
from sra2cli.data.prompts import read_prompts
from sra2cli.data.sources import open_source
from sra2cli.data.store import Store
from sra2cli.encoders.open import open_first_stage
from sra2cli.evaluation import scores
from sra2cli.evaluation.judging import MODELS, Judging
from sra2cli.evaluation.networks import NETWORKS, comparing, open_extractors
from sra2cli.evaluation.reference import check_reference, compared, is_npz, uncompared
from sra2cli.extraction.extract import extract
from sra2cli.extraction.makers import Options
from sra2cli.models.build import BACKBONES, shape_of
from sra2cli.models.contract import Backbone
from sra2cli.sampling.settings import Sampling, chosen
from sra2cli.tables import paper
from sra2cli.tables.cells import Judged

DIGITS_SAMPLES = 500
ROWS = ("model", "train.steps")  # what the rows of Table 2 differ in, beside the method
OWN = ("name", "seed", "log", "data.vae", "train.precision", "train.compile", "train.micro_batch")


@dataclass(frozen=True)
class How:
    """How an ablation is carried out.

    seeds: runs of each cell. shard: (i, n), this command's share of the cells, 1 <= i <= n.
    jobs: cells at a time; None: one; on the digits, one for each core.
    dry_run: run nothing, say what there is to run. The rest are options of `sra2 eval`.
    """

    seeds: int = 1
    shard: tuple[int, int] = (1, 1)
    jobs: int | None = None
    metrics: str | None = None
    ref: str | None = None
    weights: Path | None = None
    pickscore_model: str | None = None
    clip_model: str | None = None
    dino_model: str | None = None
    prompts: Path | None = None
    num: int | None = None
    preset: str | None = None
    solver: str | None = None
    steps: int | None = None
    vae: str | None = None
    latent_stats: str | None = None
    num_heads: int | None = None
    kind: str | None = None
    device: str | None = None
    processes: int | None = None
    offline: bool = False
    dry_run: bool = False


FILES = ("ref", "weights", "latent_stats", "prompts", *MODELS.values())  # of How


def on_digits(recipe: Recipe) -> bool:
    """Whether a recipe's first stage is the packaged one."""
    return recipe.data.vae == digits.FIRST_STAGE


def device_of(base: Recipe, how: How) -> str:
    """Of the cells' processes. The digits are trained on the CPU, as in the demo."""
    if how.device is not None:
        return how.device
    return "cuda" if torch.cuda.is_available() and not on_digits(base) else "cpu"


def common_options(base: Recipe, how: How) -> list[str]:
    """Options that `train` and `eval` both take."""
    found = ["--device", device_of(base, how)] if how.device or on_digits(base) else []
    found += [] if how.processes is None else ["--processes", str(how.processes)]
    return [*found, *(["--offline"] if how.offline else [])]


@contextlib.contextmanager
def store_for(
    base: Recipe, how: How, data: Path | None, out: Path
) -> Iterator[tuple[Store, Recipe]]:
    """The store, checked against recipe and VAE, and the recipe as it fits it.

    The digits' is made in OUT, once for all shards; of a dry run, it is made elsewhere and removed.
    """
    with contextlib.ExitStack() as stack:
        if data is None:
            if not on_digits(base):
                raise SetupError("--data: a latent store, from `sra2 extract`")
            data = out / "digits.h5"
            if how.dry_run and not data.exists():
                out = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            data = make_digits(out)
        store = Store(data)
        base = fitted(base, store)
        # Now, or it would be missed after the training.
        vae = open_first_stage(how.vae or store.info.vae, offline=how.offline)
        vae.check_store(store.info, str(store.path))
        yield store, base


def make_digits(out: Path) -> Path:
    """The store of scikit-learn's digits in a folder; waits for another command that makes it."""
    out.mkdir(parents=True, exist_ok=True)
    images, store = out / "digits", out / "digits.h5"
    with held(out / ".digits.lock"):
        if not store.exists():
            console.say(f"writing scikit-learn's digits to {images} and encoding them")
            digits.write_folder(images)
            options = Options(vae="digits", resolution=digits.RESOLUTION)
            extract(images, store, options, device="cpu")
    return store


def kept(base: Recipe) -> list[int]:
    """Steps of the checkpoints that a run keeps for good: multiples of both intervals, the last."""
    every = math.lcm(base.log.save_every, base.log.keep_every)
    return sorted({*range(every, base.train.steps + 1, every), base.train.steps})


def check_steps(steps: Sequence[int], base: Recipe) -> None:
    """Refuse checkpoints that a run will not keep."""
    wrong = next((step for step in steps if step not in kept(base)), None)
    if wrong is not None:
        raise SetupError(
            f"--step {wrong} is not kept by '{base.name}': multiples of log.save_every "
            f"({base.log.save_every}) and log.keep_every ({base.log.keep_every}) are, and the "
            f"last step ({base.train.steps})"
        )


def check_told(base: Recipe, how: How) -> None:
    """SetupError for prompts of a network that is told none, and for captions without prompts."""
    told = BACKBONES.get(base.model.kind, Backbone).told == "text"
    if told and how.prompts is None:
        raise SetupError(
            f"'{base.name}' is told captions: give --prompts, a file of them or a latent store, "
            "whose captions are drawn"
        )
    if how.prompts is not None and not told:
        raise SetupError(f"--prompts is for networks that are told captions, not for '{base.name}'")


def judging(base: Recipe, how: How, steps: Sequence[int]) -> Judged:
    """Options of `sra2 eval`: the paper's protocol, or that of fd-digits; then what was asked.

    Raises:
        SetupError: what would be refused, or be missing, after days of training.
    """
    if how.seeds < 1:
        raise SetupError(f"--seeds must be above 0, not {how.seeds}")
    slots(base, how)
    small = on_digits(base)
    preset = how.preset or ("digits" if small else None)
    told = None if how.prompts is None else read_prompts(how.prompts)
    sampling = chosen(preset, solver=how.solver, steps=how.steps, prompts=told)
    if base.data.classes is not None:  # else the store says them, and eval refuses
        sampling.check(shape_of(base))
    usual = len(told) if told else DIGITS_SAMPLES if small else paper.SAMPLES
    num = usual if how.num is None else how.num
    if num < 2:
        raise SetupError(f"--num is at least 2, not {num}")
    names = scores.parse(how.metrics or ("fd-digits" if small else ",".join(scores.PAPERS)))
    check_judging(names, how)
    given = {
        "--metrics": ",".join(names),
        "--num": num,
        "--preset": preset,
        "--solver": how.solver,
        "--steps": how.steps,
        "--ref": how.ref,
        "--weights": how.weights,
        "--pickscore-model": how.pickscore_model,
        "--clip-model": how.clip_model,
        "--dino-model": how.dino_model,
        "--prompts": how.prompts,
        "--vae": how.vae,
        "--latent-stats": how.latent_stats,
        "--num-heads": how.num_heads,
        "--kind": how.kind,
    }
    options = [str(part) for k, v in given.items() if v is not None for part in (k, v)]
    about = {"num": num, **sampling.to_dict()}
    about.pop("seed")
    files = {name: getattr(how, name) for name in FILES}
    identity = {k: str(listing_digest(str(v))) for k, v in files.items() if v is not None}
    return Judged(tuple(steps), tuple(options), names, about, identity)


def check_judging(names: Sequence[str], how: How) -> None:
    """Refuse a missing reference, one that lacks something, and missing weights."""
    models = {name: getattr(how, name) for name in MODELS.values()}
    judged = Judging(",".join(names), how.ref, how.weights, offline=how.offline, **models)
    judged.check()
    stands_in = NETWORKS[scores.networks_of(names)[0]].knows is not None
    if how.ref is None and compared(names) and not stands_in:
        raise uncompared(compared(names), "images")
    if how.ref is not None and not is_npz(how.ref):
        open_source(Path(how.ref))
    elif how.ref is not None and not Path(how.ref).exists():
        raise SetupError(f"no reference {how.ref}")
    networks = open_extractors(names, judged.opening("cpu"))
    check_reference(how.ref, comparing(names, networks), names)


def slots(base: Recipe, how: How) -> list[Mapping[str, str]]:
    """Environments of the processes that run at a time, one each.

    On the digits one for each core, with one thread, which is fastest for so small a network.
    Several on GPUs share them out.
    """
    jobs, cores = how.jobs, len(os.sched_getaffinity(0))
    if jobs is not None and jobs < 1:
        raise SetupError(f"--jobs must be above 0, not {jobs}")
    if device_of(base, how).startswith("cuda"):
        return gpu_slots(jobs or 1, how)
    if on_digits(base):
        return [{"OMP_NUM_THREADS": "1"}] * (jobs or cores)
    if jobs is None or jobs == 1:
        return [{}]
    return [{"OMP_NUM_THREADS": str(max(1, cores // jobs))}] * jobs


def gpu_slots(jobs: int, how: How) -> list[Mapping[str, str]]:
    """Every GPU for one job after the other, or a share for each of several."""
    if jobs == 1:
        return [{}]
    if how.device not in (None, "cuda") or how.processes is not None:
        raise SetupError("--jobs shares out the GPUs: leave out --processes and --device cuda:N")
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(k) for k in range(torch.cuda.device_count())]
    if jobs > len(gpus):
        raise SetupError(f"--jobs {jobs}, but there are {len(gpus)} GPUs here")
    return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[k::jobs])} for k in range(jobs)]


def differences(base: Recipe, judged: Judged, store: Store) -> list[str]:
    """What is not as in the paper's Table 1, a line each: ours, and the paper's in brackets."""
    found = of_training(base, len(store), store.path, OWN)
    if judged.steps != (base.train.steps,):
        steps = ", ".join(f"{step:,}" for step in judged.steps)
        found.append(f"judged step: {steps} (paper: {load(paper.RECIPE).train.steps:,})")
    return [*found, *of_judging(judged)]


def of_training(
    recipe: Recipe,
    images: int,
    of: Path | str,
    ignore: Sequence[str],
    *,
    like: str = paper.RECIPE,
    data: str = "ImageNet",
) -> list[str]:
    """The data, and settings that are not those of Table 1, or of another recipe and data."""
    found = [f"data: {images:,} images of {of} (paper: {data})"]
    for key, ours, theirs in differing(recipe, load(like), ignore=ignore):
        found.append(f"{key}: {ours} (paper: {'–' if theirs is None else theirs})")
    return found


def of_judging(judged: Judged) -> list[str]:
    """How images are drawn and judged, where the papers do otherwise."""
    found = []
    sampling = {"num": paper.SAMPLES, **Sampling().to_dict()}
    found += [
        f"sampling {key}: {value} (paper: {sampling.get(key, '–')})"
        for key, value in judged.about.items()
        if value != sampling.get(key)
    ]
    if not set(judged.metrics) <= set(paper.METRICS):
        found.append(f"metric: {', '.join(judged.metrics)} (paper: {', '.join(paper.METRICS)})")
    return found
