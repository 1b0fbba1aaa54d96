"""sra2 sample."""

from pathlib import Path
from typing import Annotated

import typer

from sra2cli.cli.app import (
    app,
    one_of,
    parse_interval,
    pick_device,
    show,
    start_processes,
    user_errors,
)
from sra2cli.cli.options import (
    HOW,
    WHAT,
    WHERE,
    Batch,
    CfgChannels,
    Compile,
    Device,
    Json,
    Kind,
    Labels,
    LastStep,
    Num,
    NumHeads,
    Offline,
    Precision,
    Preset,
    Processes,
    Solver,
    Vae,
)
from sra2cli.core.errors import SetupError


@app.command()
def sample(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|CHECKPOINT...",
            help="A run (RUN@STEP: of that step) or a checkpoint of SiT, REPA, SRA or ours; "
            "several with --grid.",
        ),
    ],
    num: Num = None,
    step: Annotated[
        int | None,
        typer.Option(help="Checkpoint of this step; default: newest.", rich_help_panel=WHAT),
    ] = None,
    weights: Annotated[str, typer.Option(help="ema or model.", rich_help_panel=WHAT)] = "ema",
    vae: Vae = None,
    num_heads: NumHeads = None,
    kind: Kind = None,
    seed: Annotated[
        int,
        typer.Option(
            help="Image i depends on (seed, i) alone.", min=0, max=2**63 - 1, rich_help_panel=HOW
        ),
    ] = 0,
    labels: Labels = None,
    preset: Preset = None,
    solver: Solver = None,
    steps: Annotated[
        int | None, typer.Option(help="Solver steps. [default: 250]", rich_help_panel=HOW)
    ] = None,
    last_step: LastStep = None,
    cfg: Annotated[
        float | None,
        typer.Option(help="Guidance scale; 1 is none. [default: 1]", rich_help_panel=HOW),
    ] = None,
    interval: Annotated[
        str | None,
        typer.Option(
            help="Times a:b in which guidance applies. [default: 0:1]", rich_help_panel=HOW
        ),
    ] = None,
    cfg_channels: CfgChannels = None,
    rounding: Annotated[
        str, typer.Option(help="To uint8: truncate (as REPA) or nearest.", rich_help_panel=HOW)
    ] = "truncate",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder; default: inside RUN/samples.", rich_help_panel=WHERE),
    ] = None,
    npz: Annotated[
        bool,
        typer.Option(
            "--npz", help="Also write samples.npz, for ADM's evaluator.", rich_help_panel=WHERE
        ),
    ] = False,
    grid: Annotated[
        bool,
        typer.Option(
            "--grid",
            help="One labelled picture of all sources: the same noise, labels.",
            rich_help_panel=WHERE,
        ),
    ] = False,
    batch: Batch = 64,
    precision: Precision = None,
    compile: Compile = False,
    processes: Processes = None,
    device: Device = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Draw images from a run or a checkpoint. Run again to go on."""
    with user_errors():
        one_of("--weights", weights, ("ema", "model"))
        one_of("--rounding", rounding, ("truncate", "nearest"))
        one_of("--precision", precision, ("fp32", "bf16", "fp16"))
        one_of("--solver", solver, ("em", "euler", "heun"))
        if len(sources) > 1 and not grid:
            raise SetupError("several sources need --grid: one picture of all of them")
        start_processes(processes, device)
        from sra2cli.sampling import sample as room
        from sra2cli.sampling.settings import chosen

        sampling = chosen(
            preset,
            seed=seed,
            rounding=rounding,
            labels=labels,
            solver=solver,
            steps=steps,
            last_step=last_step,
            cfg=cfg,
            interval=None if interval is None else parse_interval(interval),
            cfg_channels=cfg_channels,
        )
        options = room.Options(
            step=step,
            weights=weights,  # type: ignore[arg-type]
            vae=vae,
            batch=batch,
            precision=precision or "fp32",  # type: ignore[arg-type]
            compile=compile,
            npz=npz,
            num_heads=num_heads,
            kind=kind,
            offline=offline,
        )
        where = pick_device(device)
        if grid:
            from sra2cli.sampling import compare

            found = compare.compare(
                sources,
                num=8 if num is None else num,
                sampling=sampling,
                options=options,
                out=out,
                device=where,
            )
            show(found, json, "sample --grid")
            return
        found = room.sample(
            sources[0],
            num=100 if num is None else num,
            sampling=sampling,
            options=options,
            out=out,
            device=where,
        )
        show(found, json, "sample")
