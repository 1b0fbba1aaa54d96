"""sra2 eval."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from sra2cli.cli.app import (
    Device,
    Json,
    Offline,
    Processes,
    app,
    one_of,
    parse_interval,
    pick_device,
    start_processes,
    user_errors,
)
from sra2cli.errors import SetupError


@app.command(name="eval")
def evaluate(
    samples: Annotated[
        Path,
        typer.Argument(
            metavar="SAMPLES|RUN",
            help="From `sra2 sample`; any folder, zip or tar of images; an ADM .npz. "
            "Or a run or checkpoint to draw from.",
        ),
    ],
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            "--metric",
            help="Of fid,sfid,is,precision,recall,kid; or fd-digits. Default: the first five with "
            "an .npz as --ref, else fd-digits.",
        ),
    ] = None,
    ref: Annotated[
        str | None,
        typer.Option(help="An ADM .npz, or images; default: the metric's own (fd-digits)."),
    ] = None,
    save_stats: Annotated[
        Path | None,
        typer.Option(help="Write statistics of SAMPLES to this .npz, to be used as --ref."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Inception's weights; default: in torch's cache.")
    ] = None,
    crop: Annotated[
        int | None, typer.Option(help="Centre-crop all images to this side, as ADM does.")
    ] = None,
    distances: Annotated[
        str, typer.Option(help="Of precision and recall: float16 (as ADM) or float32.")
    ] = "float16",
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 64,
    out: Annotated[
        Path | None,
        typer.Option(
            help="JSON of the result; of a run, a folder. Default: beside SAMPLES; RUN/evals."
        ),
    ] = None,
    num: Annotated[
        int | None, typer.Option(help="Of a run: samples to draw and judge. [default: 50000]")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of a run's samples. [default: 0]", min=0, max=2**63 - 1)
    ] = None,
    labels: Annotated[str | None, typer.Option(help="As in `sample`. [default: random]")] = None,
    preset: Annotated[
        str | None, typer.Option(help="As in `sample`: sra2, repa, sit or digits.")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="As in `sample`. [default: em]")] = None,
    steps: Annotated[
        str | None, typer.Option(help="Solver steps; with commas, each in turn. [default: 250]")
    ] = None,
    cfg: Annotated[
        str | None, typer.Option(help="Guidance scales; with commas, each. [default: 1]")
    ] = None,
    interval: Annotated[
        str | None, typer.Option(help="Guidance intervals a:b; with commas, each. [default: 0:1]")
    ] = None,
    step: Annotated[
        str | None, typer.Option(help="Checkpoints; with commas, each. [default: the newest]")
    ] = None,
    last_step: Annotated[float | None, typer.Option(help="As in `sample`.")] = None,
    cfg_channels: Annotated[int | None, typer.Option(help="As in `sample`.")] = None,
    vae: Annotated[str | None, typer.Option(help="Decode a run's samples with it.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of drawing: fp32, bf16 or fp16. [default: fp32]")
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the blocks.")] = False,
    num_heads: Annotated[int | None, typer.Option(help="As in `sample`.")] = None,
    processes: Processes = None,
    device: Device = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Judge samples; or draw and judge them, over settings. Run again to go on."""
    with user_errors():
        one_of("--distances", distances, ("float16", "float32"))
        judging: dict[str, Any] = {
            "metric": metrics,
            "ref": ref,
            "weights": weights,
            "crop": crop,
            "distances": distances,
            "batch": batch,
        }
        if not is_network(samples):
            if not samples.exists() and not any(c in samples.name for c in "*?["):
                raise SetupError(f"no run, checkpoint or samples at {samples}")
            given: dict[str, Any] = {
                "--num": num,
                "--preset": preset,
                "--solver": solver,
                "--steps": steps,
            }
            given |= {"--cfg": cfg, "--interval": interval, "--step": step, "--vae": vae}
            given |= {"--labels": labels, "--processes": processes, "--num-heads": num_heads}
            given |= {"--last-step": last_step, "--cfg-channels": cfg_channels}
            given |= {"--precision": precision, "--compile": compile or None}
            given |= {"--seed": seed, "--steps": steps}
            wrong = next((name for name, value in given.items() if value is not None), None)
            if wrong is not None:
                raise SetupError(f"{wrong} is for a run or checkpoint; {samples} holds samples")
            from sra2cli import evaluate as room

            result = room.evaluate(
                samples, **judging, save_stats=save_stats, device=pick_device(device), out=out
            )
            show(result, json)
            return
        if save_stats is not None:
            raise SetupError("--save-stats is for samples or images; sample first")
        start_processes(processes, device)
        from sra2cli import sample as sampling_room
        from sra2cli import sweep
        from sra2cli.generate import PRESETS, Sampling
        from sra2cli.streaming import Judging

        if solver is not None:
            one_of("--solver", solver, ("em", "euler", "heun"))
        if preset is not None:
            one_of("--preset", preset, tuple(PRESETS))
        if precision is not None:
            one_of("--precision", precision, ("fp32", "bf16", "fp16"))
        changed: dict[str, Any] = {"labels": labels, "solver": solver, "last_step": last_step}
        changed |= {"cfg_channels": cfg_channels, "seed": seed}
        changed = {k: v for k, v in changed.items() if v is not None}
        base = Sampling(**{**PRESETS.get(preset or "", {}), **changed})
        wanted, swept = sweep.points(
            base,
            checkpoints=listed("--step", step, int) or [None],
            cfgs=listed("--cfg", cfg, float) or [base.cfg],
            intervals=listed("--interval", interval, parse_interval) or [base.interval],
            solver_steps=listed("--steps", steps, int) or [base.steps],
        )
        options = sampling_room.Options(
            vae=vae,
            precision=precision or "fp32",  # type: ignore[arg-type]
            compile=compile,
            num_heads=num_heads,
            offline=offline,
        )
        found = sweep.judge(
            samples,
            wanted,
            swept=swept,
            num=50_000 if num is None else num,
            options=options,
            judging=Judging(**judging),
            device=pick_device(device),
            out=out,
        )
        show_sweep(found, json, swept)


def is_network(path: Path) -> bool:
    """A run folder or a checkpoint, rather than samples."""
    name, at, number = str(path).rpartition("@")
    if at and number.isdigit() and not path.exists():  # RUN@STEP
        path = Path(name)
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
    from sra2cli import console

    if as_json:
        console.print_json(found)
        return
    names = list(found["rows"][0]["settings"]["metrics"])
    told = all("accuracy" in row for row in found["rows"])
    rows = [
        (
            row["point"],
            *(f"{row[n]:.4f}" for n in names),
            *([f"{row['accuracy']:.1%}"] if told else []),
        )
        for row in found["rows"]
    ]
    header = (swept, *names, *(["accuracy"] if told else []))
    console.print_table(f"{found['rows'][0]['count']:,} samples a point", header, rows)
    console.say(
        f"results: {found['file']}" + (f"   plot: {found['plot']}" if found["plot"] else "")
    )


def show(result: dict[str, Any], as_json: bool) -> None:
    """The metrics as a table, with what they were made of; or all of it as JSON."""
    from sra2cli import console
    from sra2cli.scores import METRICS

    if as_json:
        console.print_json(result)
        return
    rows = [
        (f"{name} {METRICS[name].better}", f"{result[name]:.4f}")
        for name in result["settings"]["metrics"]
    ]
    if "accuracy" in result:
        rows.append(("accuracy ↑", f"{result['accuracy']:.1%}"))
    rows.append(("samples", f"{result['count']:,}"))
    if result["reference"] is not None:
        count = result["reference_count"]
        rows.append(("reference", result["reference"] + (f" ({count:,})" if count else "")))
    if result["saved_statistics"]:
        rows.append(("statistics", result["saved_statistics"]))
    console.print_table(f"eval of {result['samples']}", ("", ""), rows)
