"""sra2 sample."""

from pathlib import Path
from typing import Annotated

import typer

from sra2cli.cli import options as o
from sra2cli.cli.app import (
    app,
    check_drawing,
    one_of,
    parse_interval,
    pick_device,
    prompts_of,
    show,
    start_processes,
    user_errors,
)
from sra2cli.core.errors import SetupError


def is_store(path: Path | None) -> bool:
    """Whether prompts are a store's captions: of them not all are drawn unless it is said."""
    return path is not None and path.suffix in (".h5", ".hdf5")


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
    num: o.Num = None,
    step: Annotated[int | None, o.what("Checkpoint of this step; default: newest.")] = None,
    weights: Annotated[str, o.what("ema or model.")] = "ema",
    vae: o.Vae = None,
    latent_stats: o.LatentStats = None,
    num_heads: o.NumHeads = None,
    kind: o.Kind = None,
    seed: Annotated[int, o.how("Image i depends on (seed, i) alone.", min=0, max=2**63 - 1)] = 0,
    labels: o.Labels = None,
    prompt: o.Prompt = None,
    prompts: o.PromptsFrom = None,
    negative_prompt: o.NegativePrompt = None,
    text_encoder: o.TextEncoder = None,
    preset: o.Preset = None,
    solver: o.Solver = None,
    steps: Annotated[int | None, o.how("Solver steps. [default: 250]")] = None,
    last_step: o.LastStep = None,
    shift: o.Shift = None,
    cfg: Annotated[float | None, o.how("Guidance scale; 1 is none. [default: 1]")] = None,
    interval: Annotated[
        str | None, o.how("Times a:b in which guidance applies. [default: 0:1]")
    ] = None,
    cfg_channels: o.CfgChannels = None,
    class_cfg: o.ClassCfg = None,
    rounding: Annotated[str, o.how("To uint8: truncate (as REPA) or nearest.")] = "truncate",
    out: Annotated[Path | None, o.where("Folder; default: inside RUN/samples.")] = None,
    npz: Annotated[bool, o.where("Also write samples.npz, for ADM's evaluator.", "--npz")] = False,
    grid: Annotated[
        bool, o.where("One labelled picture of all sources: the same noise, labels.", "--grid")
    ] = False,
    batch: o.Batch = 64,
    precision: o.Precision = None,
    compile: o.Compile = False,
    processes: o.Processes = None,
    device: o.Device = None,
    offline: o.Offline = False,
    json: o.Json = False,
) -> None:
    """Draw images from a run or a checkpoint. Run again to go on."""
    with user_errors():
        one_of("--weights", weights, ("ema", "model"))
        one_of("--rounding", rounding, ("truncate", "nearest"))
        check_drawing(precision, solver)
        if len(sources) > 1 and not grid:
            raise SetupError("several sources need --grid: one picture of all of them")
        start_processes(processes, device)
        from sra2cli.sampling import sample as room
        from sra2cli.sampling.settings import chosen

        told = prompts_of(prompt, prompts, negative_prompt)
        if num is None and told is not None and not is_store(prompts):
            num = len(told)
        sampling = chosen(
            preset,
            seed=seed,
            rounding=rounding,
            labels=labels,
            solver=solver,
            steps=steps,
            last_step=last_step,
            shift=shift,
            cfg=cfg,
            interval=None if interval is None else parse_interval(interval),
            cfg_channels=cfg_channels,
            class_cfg=class_cfg,
            prompts=told,
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
            latent_stats=latent_stats,
            text_encoder=text_encoder,
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
