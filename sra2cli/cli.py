"""The `sra2` command: parses, imports its command's room, prints the result. Nothing else.

No room that imports torch is imported before a command runs, so that --help is instant.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from sra2cli import __version__
from sra2cli.errors import SetupError, UserError

app = typer.Typer(
    name="sra2",
    help="Train, sample and judge latent diffusion transformers with representation alignment.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: cuda if there.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never touch the network.")]


def fail(error: UserError) -> NoReturn:
    """One line on stderr, and the error's exit code."""
    from sra2cli.console import stderr

    stderr.print("error: " + " ".join(str(error).split()), style="red", markup=False)
    sys.exit(error.exit_code)


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn what a user can mend into one line; leave bugs their traceback."""
    try:
        yield
    except UserError as error:
        fail(error)
    except KeyboardInterrupt:
        from sra2cli.console import say

        say("stopped: run the same command again to go on")
        sys.exit(130)
    except OSError as error:
        import errno

        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fail(UserError("the disk is full: free some space and run the same command again"))
        if error.filename and error.errno in (
            errno.EACCES,
            errno.EROFS,
            errno.EPERM,
            errno.ENOTDIR,
            errno.EISDIR,
            errno.EEXIST,
        ):
            fail(SetupError(f"cannot use {error.filename}: {error.strerror}"))
        raise


def pick_device(wanted: str | None) -> str:
    """The device asked for, or cuda if there is one; refuses one that is not there."""
    import torch

    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = wanted.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise SetupError(f"unknown device '{wanted}': cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise SetupError(f"no CUDA device here for --device {wanted}")
    return wanted


def show(result: dict[str, Any], as_json: bool, title: str) -> None:
    """The result on stdout: JSON, or its plain values as a table."""
    from sra2cli import console

    if as_json:
        console.print_json(result)
        return
    rows = [
        (key, f"{value:.4g}" if isinstance(value, float) else str(value))
        for key, value in result.items()
        if not isinstance(value, dict | None)
    ]
    console.print_table(title, ("", ""), rows)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"sra2 {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def extract(
    images: Annotated[Path, typer.Argument(help="Folder of class folders, or a flat folder.")],
    out: Annotated[Path, typer.Option(help="The store to write (HDF5).")],
    vae: Annotated[
        str, typer.Option(help="A diffusers AutoencoderKL: folder, hub name, or 'digits'.")
    ] = "stabilityai/sd-vae-ft-mse",
    resolution: Annotated[int, typer.Option(help="Side of the centre crop, in pixels.")] = 256,
    flip: Annotated[bool, typer.Option("--flip", help="Also encode the mirrored images.")] = False,
    encoder: Annotated[
        str | None,
        typer.Option(help="Also store an image encoder's features (REPA): hub name or folder."),
    ] = None,
    feature_patch: Annotated[
        int, typer.Option(help="Patch size of the network to be trained.", min=1)
    ] = 2,
    device: Device = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Encode images into a latent store. Run again to go on."""
    with user_errors():
        from sra2cli import extract as room

        result = room.extract(
            images,
            out,
            vae=vae,
            resolution=resolution,
            mirrored=flip,
            encoder=encoder,
            feature_patch=feature_patch,
            device=pick_device(device),
            offline=offline,
        )
        show(result, json, "extract")
        if result["rejects"]:
            fail(
                UserError(
                    f"{result['rejects']} images could not be read and were skipped: "
                    f"see {result['rejects_file']}"
                )
            )


@app.command()
def train(
    recipe: Annotated[str, typer.Option(help="Name of a packaged recipe, or a YAML file.")],
    data: Annotated[Path, typer.Option(help="A latent store, from `sra2 extract`.")],
    out: Annotated[Path | None, typer.Option(help="The run folder. Default: runs/RECIPE.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: key.sub=value. Repeatable.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="REPA: the store's images, to run the encoder while training."),
    ] = None,
    device: Device = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Train a recipe. Run again to go on."""
    with user_errors():
        from sra2cli import recipe as recipes

        wanted = recipes.load(recipe, overrides or [])
        from sra2cli import train as room

        result = room.train(
            wanted,
            data,
            out or Path("runs") / wanted.name,
            device=pick_device(device),
            images=images,
            offline=offline,
        )
        show({**result, **result["last"]}, json, f"train {wanted.name}")


@app.command()
def sample(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|CHECKPOINT",
            help="A run folder, or a checkpoint of SiT, REPA, SRA or ours.",
        ),
    ],
    num: Annotated[int, typer.Option(help="How many images.")] = 100,
    seed: Annotated[
        int, typer.Option(help="Image i depends on (seed, i) alone.", min=0, max=2**63 - 1)
    ] = 0,
    labels: Annotated[str, typer.Option(help="random, balanced, or classes as 0,1,2.")] = "random",
    solver: Annotated[str, typer.Option(help="em (SDE), euler or heun (ODE).")] = "em",
    steps: Annotated[int, typer.Option(help="Solver steps.")] = 250,
    last_step: Annotated[
        float, typer.Option(help="em: length of its noise-free last step.")
    ] = 0.04,
    cfg: Annotated[float, typer.Option(help="Guidance scale; 1 is none.")] = 1.0,
    interval: Annotated[str, typer.Option(help="Times a:b in which guidance applies.")] = "0:1",
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
    batch: Annotated[int, typer.Option(help="Images at a time; does not change them.")] = 64,
    num_heads: Annotated[
        int | None, typer.Option(help="For checkpoints of sizes that are not in the table.")
    ] = None,
    device: Device = None,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Draw images from a run or a checkpoint. Run again to go on."""
    with user_errors():
        for name, value, options in (
            ("solver", solver, ("em", "euler", "heun")),
            ("weights", weights, ("ema", "model")),
            ("rounding", rounding, ("truncate", "nearest")),
        ):
            if value not in options:
                raise SetupError(f"--{name} is one of {', '.join(options)}, not '{value}'")
        window = parse_interval(interval)
        from sra2cli import sample as room
        from sra2cli.generate import Sampling

        sampling = Sampling(
            solver=solver,  # type: ignore[arg-type]
            steps=steps,
            last_step=last_step,
            cfg=cfg,
            interval=window,
            cfg_channels=cfg_channels,
            labels=labels,
            seed=seed,
            rounding=rounding,  # type: ignore[arg-type]
        )
        result = room.sample(
            source,
            num=num,
            sampling=sampling,
            step=step,
            weights=weights,  # type: ignore[arg-type]
            out=out,
            vae=vae,
            batch=batch,
            num_heads=num_heads,
            device=pick_device(device),
            offline=offline,
        )
        show(result, json, "sample")


def parse_interval(text: str) -> tuple[float, float]:
    """ "0:0.7" → (0.0, 0.7)."""
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise SetupError(f"--interval is a:b, as 0:0.7; not '{text}'") from None
    return low, high


@app.command(name="eval")
def evaluate(
    samples: Annotated[Path, typer.Argument(help="A samples folder, from `sra2 sample`.")],
    metric: Annotated[str, typer.Option(help="fd-digits.")] = "fd-digits",
    ref: Annotated[
        str | None, typer.Option(help="Folder of reference images; default: the metric's own.")
    ] = None,
    json: Json = False,
) -> None:
    """Judge samples."""
    with user_errors():
        from sra2cli import evaluate as room

        show(room.evaluate(samples, metric=metric, ref=ref), json, "eval")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of both runs.", min=0, max=2**63 - 1)] = 0,
    steps: Annotated[int, typer.Option(help="Training steps of each run.", min=2)] = 1000,
    json: Json = False,
) -> None:
    """The whole pipeline on real handwritten digits, on a laptop, in minutes."""
    with user_errors():
        from sra2cli import demo as room

        result = room.demo(out, seed=seed, steps=steps)
        if json:
            from sra2cli import console

            console.print_json(result)


if __name__ == "__main__":
    app()
