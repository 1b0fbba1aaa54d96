"""sra2 eval."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from sra2cli.cli import options as o
from sra2cli.cli.app import (
    app,
    check_drawing,
    chosen_source,
    one_of,
    parse_interval,
    pick_device,
    prompts_of,
    refuse_given,
    start_processes,
    user_errors,
)
from sra2cli.core import hub
from sra2cli.core.errors import SetupError
from sra2cli.runs.naming import nearest_run, split_step

if TYPE_CHECKING:
    from sra2cli.data.prompts import Prompts
    from sra2cli.data.sources import Choice
    from sra2cli.evaluation.image_sets import Crop

# Options that mean nothing for what is drawn.
READING = ("image", "label", "split", "classes_from", "captions")
DRAWING = (  # options that mean nothing for images that are there already
    *("num", "step", "vae", "latent_stats", "num_heads", "kind", "seed", "labels", "preset"),
    *("solver", "steps", "last_step", "shift", "cfg", "interval", "cfg_channels", "class_cfg"),
    *("self_guidance", "self_interval", "prompt", "prompts", "negative_prompt", "text_encoder"),
    *("precision", "compile", "processes"),
)


@app.command(name="eval")
def evaluate(
    ctx: typer.Context,
    samples: Annotated[
        Path,
        typer.Argument(
            metavar="SAMPLES|RUN",
            help="From `sra2 sample`; any folder, zip or tar of images; an ADM .npz. "
            "Or a run (RUN@STEP) or checkpoint (by path or hub name, hf:ORG/NAME) to draw from.",
        ),
    ],
    ref: o.Ref = None,
    image: o.Image = None,
    label: o.Label = None,
    split: o.Split = None,
    classes_from: o.ClassesFrom = None,
    captions: o.Captions = None,
    num: o.Num = None,
    step: Annotated[
        str | None, o.what("Checkpoints; with commas, each. [default: the newest]")
    ] = None,
    vae: o.Vae = None,
    latent_stats: o.LatentStats = None,
    num_heads: o.NumHeads = None,
    kind: o.Kind = None,
    inception: o.Inception = None,
    pickscore_model: o.PickscoreModel = None,
    clip_model: o.ClipModel = None,
    dino_model: o.DinoModel = None,
    metrics: o.Metrics = None,
    seed: Annotated[
        int | None, o.how("Of a run's samples. [default: 0]", min=0, max=2**63 - 1)
    ] = None,
    labels: o.Labels = None,
    prompt: o.Prompt = None,
    prompts: o.PromptsFrom = None,
    negative_prompt: o.NegativePrompt = None,
    text_encoder: o.TextEncoder = None,
    preset: o.Preset = None,
    solver: o.Solver = None,
    steps: Annotated[
        str | None, o.how("Solver steps; with commas, each in turn. [default: 250]")
    ] = None,
    last_step: o.LastStep = None,
    shift: o.Shift = None,
    cfg: Annotated[str | None, o.how("Guidance scales; with commas, each. [default: 1]")] = None,
    interval: Annotated[
        str | None, o.how("Guidance intervals a:b; with commas, each. [default: 0:1]")
    ] = None,
    cfg_channels: o.CfgChannels = None,
    class_cfg: o.ClassCfg = None,
    self_guidance: Annotated[
        str | None, o.how("Of the head of sra2 or internal; with commas, each. [default: 1]")
    ] = None,
    self_interval: Annotated[
        str | None, o.how("Its intervals, a above 0; with commas, each. [default: 0.1:1]")
    ] = None,
    crop: Annotated[
        str | None,
        o.how("Centre-crop all images to this side, as ADM does; as U-ViT: uvit-center:256."),
    ] = None,
    distances: Annotated[
        str, o.how("Of precision and recall: float16 (as ADM) or float32.")
    ] = "float16",
    save_stats: Annotated[
        Path | None, o.where("Write statistics of SAMPLES to this .npz, to be used as --ref.")
    ] = None,
    out: Annotated[
        Path | None,
        o.where("JSON of the result; of a run, a folder. Default: beside SAMPLES; RUN/evals."),
    ] = None,
    batch: o.Batch = 64,
    precision: o.Precision = None,
    compile: o.Compile = False,
    processes: o.Processes = None,
    device: o.Device = None,
    offline: o.Offline = False,
    json: o.Json = False,
) -> None:
    """Judge samples; or draw and judge them, over settings. Run again to go on."""
    with user_errors():
        one_of("--distances", distances, ("float16", "float32"))
        check_drawing(precision, solver)
        judging = read_judging(ctx.params)
        if not is_network(samples):
            refuse_drawing(ctx, samples)
            choice = chosen_source(image, label, split, classes_from, captions=captions)
            there = pick_device(device, apple=True)
            show(of_images(samples, judging, choice, save_stats, there, out), json)
            return
        refuse_reading(ctx, samples, save_stats)
        start_processes(processes, device)
        from sra2cli.evaluation import sweep
        from sra2cli.evaluation.judging import Judging
        from sra2cli.sampling.opening import Options
        from sra2cli.sampling.settings import chosen

        told = prompts_of(prompt, prompts, negative_prompt)
        base = chosen(
            preset,
            labels=labels,
            solver=solver,
            last_step=last_step,
            shift=shift,
            cfg_channels=cfg_channels,
            class_cfg=class_cfg,
            prompts=told,
            seed=seed,
        )
        wanted, swept = sweep.points(
            base,
            checkpoints=listed("--step", step, int),
            cfgs=listed("--cfg", cfg, float),
            intervals=listed("--interval", interval, parse_interval),
            owns=listed("--self-guidance", self_guidance, float),
            own_intervals=listed(
                "--self-interval", self_interval, partial(parse_interval, option="--self-interval")
            ),
            solver_steps=listed("--steps", steps, int),
        )
        found = sweep.judge(
            samples,
            wanted,
            swept=swept,
            num=usual(told) if num is None else num,
            options=Options(
                vae=vae,
                precision=precision,  # type: ignore[arg-type]
                compile=compile,
                num_heads=num_heads,
                kind=kind,
                latent_stats=latent_stats,
                text_encoder=text_encoder,
                offline=offline,
            ),
            judging=Judging(**judging),
            device=pick_device(device, apple=True),
            out=out,
        )
        show_sweep(found, json, swept)


def read_judging(given: dict[str, Any]) -> dict[str, Any]:
    """How images are judged, of the command's options."""
    same = ("ref", "pickscore_model", "clip_model", "dino_model", "batch", "distances", "offline")
    found = {name: given[name] for name in same}
    found |= {"metric": given["metrics"], "weights": given["inception"]}
    return {**found, "crop": read_crop(given["crop"])}


def refuse_reading(ctx: typer.Context, samples: Path, save_stats: Path | None) -> None:
    """What means nothing for what is drawn."""
    refuse_given(ctx, READING, f"is for images that are there; {samples} is to be drawn from")
    if save_stats is not None:
        raise SetupError("--save-stats is for samples or images; sample first")


def refuse_drawing(ctx: typer.Context, samples: Path) -> None:
    """SetupError where there are no samples, or an option is for what is drawn."""
    from sra2cli.data.sources import is_pattern

    if not samples.exists() and not is_pattern(samples):
        raise SetupError(f"no run, checkpoint or samples at {samples}{nearest_run(samples)}")
    refuse_given(ctx, DRAWING, f"is for a run or checkpoint; {samples} holds samples")


def usual(told: "Prompts | None") -> int:
    """Images that are drawn unless it is said: as many as papers draw, or one a prompt."""
    return 50_000 if told is None else len(told)


def read_crop(text: str | None) -> "Crop | None":
    from sra2cli.evaluation.image_sets import Crop

    return None if text is None else Crop.of(text)


def of_images(
    samples: Path,
    judging: dict[str, Any],
    choice: "Choice",
    save_stats: Path | None,
    device: str,
    out: Path | None,
) -> dict[str, Any]:
    from sra2cli.evaluation.evaluate import evaluate
    from sra2cli.evaluation.judging import Judging

    return evaluate(
        samples, Judging(**judging), choice, save_stats=save_stats, device=device, out=out
    )


def is_network(path: Path) -> bool:
    """A run folder or a checkpoint, rather than samples."""
    path, _ = split_step(path)
    if hub.is_name(path):
        return True
    if path.is_dir():
        marks = ("recipe.yaml", "checkpoint.json", "model.safetensors")
        return any((path / name).exists() for name in marks)
    return path.suffix in (".pt", ".pth", ".safetensors")


T = TypeVar("T")


def listed(option: str, text: str | None, read: Callable[[str], T]) -> list[T]:
    """Values between commas, or SetupError."""
    try:
        return [] if text is None else list(dict.fromkeys(read(part) for part in text.split(",")))
    except ValueError:
        raise SetupError(f"{option} takes values with commas between them, not '{text}'") from None


def show_sweep(found: dict[str, Any], as_json: bool, swept: str) -> None:
    """A row a point, or all of it as JSON."""
    from sra2cli.core import console
    from sra2cli.evaluation.scores import with_accuracy

    if as_json:
        console.print_json(found)
        return
    first = found["rows"][0]
    names = with_accuracy(first["settings"]["metrics"], found["rows"])
    rows = [(row["point"], *(number(n, row[n]) for n in names)) for row in found["rows"]]
    console.print_table(f"{first['count']:,} samples a point", (swept, *names), rows)
    console.say(
        f"results: {found['file']}" + (f"   plot: {found['plot']}" if found["plot"] else "")
    )


def number(name: str, value: float) -> str:
    return f"{value:.1%}" if name == "accuracy" else f"{value:.4f}"


def show(result: dict[str, Any], as_json: bool) -> None:
    """The metrics as a table, with what they were made of; or all of it as JSON."""
    from sra2cli.core import console
    from sra2cli.evaluation.scores import BETTER, with_accuracy

    if as_json:
        console.print_json(result)
        return
    names = with_accuracy(result["settings"]["metrics"], [result])
    rows = [(f"{name} {BETTER[name]}", number(name, result[name])) for name in names]
    rows.append(("samples", f"{result['count']:,}"))
    if result["reference"] is not None:
        count = result["reference_count"]
        rows.append(("reference", result["reference"] + (f" ({count:,})" if count else "")))
    if result["saved_statistics"]:
        rows.append(("statistics", result["saved_statistics"]))
    console.print_table(f"eval of {result['samples']}", ("", ""), rows)
