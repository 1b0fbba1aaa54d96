"""sra2 ablate."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sra2cli.cli import options as o
from sra2cli.cli.app import app, one_of, pick_device, refuse_given, user_errors
from sra2cli.core.errors import SetupError

COMPARED = ("systems", "t2i")  # tables of runs and checkpoints that are there
AXES = ("depth", "timesteps", "objective", "lambda", "mlp", "final")
METHODS = "methods"


@app.command()
def ablate(
    ctx: typer.Context,
    axis: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join(AXES)}; all of them: all; methods; iterations; systems; t2i."
        ),
    ],
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RUN|CHECKPOINT]...",
            help="systems, t2i: what is compared. iterations: runs; default: recipe and baseline.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        o.what("Name of a recipe, or a YAML file. [default: b-sra2]", complete=o.recipes),
    ] = None,
    data: Annotated[
        Path | None, o.what("A latent store. The digits' recipes make their own.")
    ] = None,
    out: Annotated[Path | None, o.where("Default: runs/ablate-RECIPE.")] = None,
    values: Annotated[
        str | None, o.how("Values of the axis, with commas; default: the paper's.")
    ] = None,
    seeds: Annotated[
        int | None, o.how("Runs of each cell: mean and deviation. [default: 1]")
    ] = None,
    step: Annotated[
        str | None, o.how("Checkpoint to judge; iterations: several, with commas. Default: last.")
    ] = None,
    overrides: o.Overrides = None,
    shard: Annotated[
        str, o.machine("i/n: every n-th cell, from the i-th; n machines share the work.")
    ] = "1/1",
    jobs: Annotated[
        int | None, o.machine("Cells at a time. Default: 1; on the digits, one a core.")
    ] = None,
    metrics: o.Metrics = None,
    ref: o.Ref = None,
    inception: o.Inception = None,
    pickscore_model: o.PickscoreModel = None,
    clip_model: o.ClipModel = None,
    dino_model: o.DinoModel = None,
    prompts: o.PromptsFrom = None,
    num: o.Num = None,
    preset: o.Preset = None,
    solver: o.Solver = None,
    steps: Annotated[int | None, o.how("Solver steps, as in `sample`.")] = None,
    vae: o.Vae = None,
    latent_stats: o.LatentStats = None,
    num_heads: o.NumHeads = None,
    kind: o.Kind = None,
    dry_run: o.DryRun = False,
    processes: o.Processes = None,
    device: o.Device = None,
    offline: o.Offline = False,
    json: o.Json = False,
) -> None:
    """The paper's Tables 1 to 4 on any recipe and data. Run again to go on."""
    with user_errors():
        one_of("AXIS", axis, (*AXES, "all", METHODS, "iterations", *COMPARED))
        refuse_for(axis, runs, values, step, prompts)
        if axis not in COMPARED:
            others = ("latent_stats", "num_heads", "kind")
            refuse_given(ctx, others, "is for checkpoints of others, in `ablate systems`")
        if runs:
            made = ("recipe", "data", "seeds", "overrides")
            refuse_given(ctx, made, "is for runs that are made; these are there already")
        chosen = read_steps(step)
        if axis != "iterations" and len(chosen) > 1:
            raise SetupError("--step takes one step; several are for `ablate iterations`")
        from sra2cli.config import recipe as recipes
        from sra2cli.tables import ablate as room
        from sra2cli.tables.protocol import How

        how = How(
            seeds=1 if seeds is None else seeds,
            shard=read_shard(shard),
            jobs=jobs,
            metrics=metrics,
            ref=ref,
            weights=inception,
            pickscore_model=pickscore_model,
            clip_model=clip_model,
            dino_model=dino_model,
            prompts=prompts,
            num=num,
            preset=preset,
            solver=solver,
            steps=steps,
            device=None if device is None else pick_device(device),
            vae=vae,
            latent_stats=latent_stats,
            num_heads=num_heads,
            kind=kind,
            processes=processes,
            offline=offline,
            dry_run=dry_run,
        )
        if axis in COMPARED:
            from sra2cli.tables.systems import systems
            from sra2cli.tables.text_to_image import text_to_image

            compare = systems if axis == "systems" else text_to_image
            found = compare(runs or [], how, out=out or Path("runs") / f"ablate-{axis}")
        elif runs:
            out = out or Path("runs") / "ablate-iterations"
            found = room.iterations_of(runs, how, out=out, steps=chosen)
        else:
            base = recipes.load(recipe or "b-sra2", overrides or [])
            out = out or Path("runs") / f"ablate-{base.name}"
            if axis == "iterations":
                found = room.iterations(base, how, data=data, out=out, steps=chosen)
            else:
                names = AXES if axis == "all" else (axis,)
                one = chosen[0] if chosen else None
                found = room.ablate(names, base, how, data=data, out=out, values=values, step=one)
        show(found, json)
        room.raise_failed(found)


def refuse_for(
    axis: str,
    runs: list[Path] | None,
    values: str | None,
    step: str | None,
    prompts: Path | None,
) -> None:
    """SetupError for options and arguments that mean nothing for this table."""
    if values is not None and axis not in (*AXES, METHODS):
        raise SetupError(f"--values is for one axis, not for `ablate {axis}`")
    if runs and axis not in ("iterations", *COMPARED):
        raise SetupError(f"runs are for `ablate iterations`; `ablate {axis}` makes its own")
    if axis in COMPARED and not runs:
        raise SetupError(f"`ablate {axis}` compares runs and checkpoints: give some")
    if axis in COMPARED and step is not None:
        raise SetupError(f"--step: give it with each run of `ablate {axis}`, as RUN@STEP")
    if prompts is not None and axis == "systems":
        raise SetupError("--prompts is for networks that are told captions: `ablate t2i`")


def read_shard(text: str) -> tuple[int, int]:
    """ "2/4" → (2, 4)."""
    try:
        number, count = (int(part) for part in text.split("/"))
    except ValueError:
        number, count = 0, 0
    if not 1 <= number <= count:
        raise SetupError(f"--shard is i/n with 1 <= i <= n, as 2/4; not '{text}'")
    return number, count


def read_steps(text: str | None) -> list[int]:
    try:
        return [] if text is None else sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise SetupError(f"--step takes steps with commas between them, not '{text}'") from None


def show(found: dict[str, Any], as_json: bool) -> None:
    """The tables, or all of it as JSON; of a dry run, the cells."""
    from sra2cli.core import console
    from sra2cli.tables import render

    if as_json:
        console.print_json(found)
        return
    if found.get("dry_run"):
        rows = [
            (c["cell"], "done" if c["done"] else f"{c['steps_left']:,}") for c in found["cells"]
        ]
        console.print_table("cells", ("cell", "steps left"), rows)
        console.say(
            f"{found['jobs']} at a time, about {found['estimated_training_hours']} h of training "
            "(estimated from a timed step; sampling and judging come on top)"
        )
        return
    for table in found["tables"].values():
        lines = [render.cells(table, row) for row in table["rows"]]
        console.print_table(f"ablation: {table['title']}", render.header(table), lines)
    table = next(iter(found["tables"].values()))
    if any(row["paper"] for row in table["rows"]):
        console.say(f"the paper's numbers: {table['paper']}")
    if table["differs"]:
        console.say(f"not as in the paper: {'; '.join(table['differs'])}")
    if found["missing"]:
        console.say(f"not there yet: {', '.join(found['missing'])}")
    console.say(f"written: {' '.join(found['files'])}")
