"""sra2 sample."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from sra2cli.data.prompts import Prompts
    from sra2cli.sampling.opening import Options
    from sra2cli.sampling.settings import Sampling


@app.command()
def sample(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|CHECKPOINT...",
            help="A run (RUN@STEP: of that step) or a checkpoint of SiT, REPA, SRA or ours, by "
            "path or hub name (hf:ORG/NAME[/FILE][@REVISION]); several with --grid.",
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
    self_guidance: Annotated[
        float | None, o.how("Guidance by the head of sra2 or internal; 1 is none. [default: 1]")
    ] = None,
    self_interval: Annotated[
        str | None, o.how("Times a:b in which that applies, a above 0. [default: 0.1:1]")
    ] = None,
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
        from sra2cli.sampling.opening import Options
        from sra2cli.sampling.settings import chosen

        told = prompts_of(prompt, prompts, negative_prompt)
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
            self_guidance=self_guidance,
            self_interval=None
            if self_interval is None
            else parse_interval(self_interval, "--self-interval"),
            prompts=told,
        )
        options = Options(
            step=step,
            weights=weights,  # type: ignore[arg-type]
            vae=vae,
            batch=batch,
            precision=precision,  # type: ignore[arg-type]
            compile=compile,
            npz=npz,
            num_heads=num_heads,
            kind=kind,
            latent_stats=latent_stats,
            text_encoder=text_encoder,
            offline=offline,
        )
        if num is None:
            num = 8 if grid else usual(told, prompts)
        found = draw(sources, grid, num, sampling, options, out, pick_device(device, apple=True))
        show(found, json, "sample --grid" if grid else "sample")


def usual(told: "Prompts | None", source: Path | None) -> int:
    """Images that are drawn unless it is said: one a prompt; of a store's captions not all."""
    stored = source is not None and source.suffix in (".h5", ".hdf5")
    return 100 if told is None or stored else len(told)


def draw(
    sources: list[Path],
    grid: bool,
    num: int,
    sampling: "Sampling",
    options: "Options",
    out: Path | None,
    device: str,
) -> dict[str, Any]:
    """A folder of one source, or one picture of several."""
    if grid:
        from sra2cli.sampling.compare import compare

        return compare(sources, num=num, sampling=sampling, options=options, out=out, device=device)
    from sra2cli.sampling.sample import sample

    return sample(sources[0], num=num, sampling=sampling, options=options, out=out, device=device)
