"""sra2 sample."""

from pathlib import Path
from typing import Annotated, Any

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
    show,
    start_processes,
    user_errors,
)
from sra2cli.errors import SetupError


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
    num: Annotated[int | None, typer.Option(help="How many images. [default: 100]")] = None,
    seed: Annotated[
        int, typer.Option(help="Image i depends on (seed, i) alone.", min=0, max=2**63 - 1)
    ] = 0,
    labels: Annotated[
        str | None, typer.Option(help="random, balanced, or classes as 0,1,2. [default: random]")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Of a paper: sra2, repa, sit; or digits. Options override."),
    ] = None,
    solver: Annotated[
        str | None, typer.Option(help="em (SDE), euler or heun (ODE). [default: em]")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Solver steps. [default: 250]")] = None,
    last_step: Annotated[
        float | None, typer.Option(help="em: length of its noise-free last step. [default: 0.04]")
    ] = None,
    cfg: Annotated[
        float | None, typer.Option(help="Guidance scale; 1 is none. [default: 1]")
    ] = None,
    interval: Annotated[
        str | None, typer.Option(help="Times a:b in which guidance applies. [default: 0:1]")
    ] = None,
    cfg_channels: Annotated[
        int | None, typer.Option(help="Guide the first n latent channels only.")
    ] = None,
    rounding: Annotated[
        str, typer.Option(help="To uint8: truncate (as REPA) or nearest.")
    ] = "truncate",
    step: Annotated[
        int | None, typer.Option(help="Checkpoint of this step; default: newest.")
    ] = None,
    weights: Annotated[str, typer.Option(help="ema or model.")] = "ema",
    vae: Annotated[
        str | None, typer.Option(help="Decode with this VAE; default: the store's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default: inside RUN/samples.")] = None,
    npz: Annotated[
        bool, typer.Option("--npz", help="Also write samples.npz, for ADM's evaluator.")
    ] = False,
    grid: Annotated[
        bool,
        typer.Option("--grid", help="One labelled picture of all sources: the same noise, labels."),
    ] = False,
    batch: Annotated[int, typer.Option(help="Images at a time; does not change them.")] = 64,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the blocks.")] = False,
    num_heads: Annotated[
        int | None, typer.Option(help="For checkpoints of sizes that are not in the table.")
    ] = None,
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
        if solver is not None:
            one_of("--solver", solver, ("em", "euler", "heun"))
        given: dict[str, Any] = {
            "labels": labels,
            "solver": solver,
            "steps": steps,
            "last_step": last_step,
            "cfg": cfg,
            "interval": None if interval is None else parse_interval(interval),
            "cfg_channels": cfg_channels,
        }
        if len(sources) > 1 and not grid:
            raise SetupError("several sources need --grid: one picture of all of them")
        start_processes(processes, device)
        from sra2cli import sample as room
        from sra2cli.generate import PRESETS, Sampling

        if preset is not None:
            one_of("--preset", preset, tuple(PRESETS))
        chosen = {
            **PRESETS.get(preset or "", {}),
            **{k: v for k, v in given.items() if v is not None},
        }
        sampling = Sampling(seed=seed, rounding=rounding, **chosen)  # type: ignore[arg-type]
        options = room.Options(
            step=step,
            weights=weights,  # type: ignore[arg-type]
            vae=vae,
            batch=batch,
            precision=precision,  # type: ignore[arg-type]
            compile=compile,
            npz=npz,
            num_heads=num_heads,
            offline=offline,
        )
        if grid:
            from sra2cli import compare

            result = compare.compare(
                sources,
                num=num or 8,
                sampling=sampling,
                options=options,
                out=out,
                device=pick_device(device),
            )
            show(result, json, "sample --grid")
            return
        source, options = room.at_step(sources[0], options)
        result = room.sample(
            source,
            num=100 if num is None else num,
            sampling=sampling,
            options=options,
            out=out,
            device=pick_device(device),
        )
        show(result, json, "sample")
