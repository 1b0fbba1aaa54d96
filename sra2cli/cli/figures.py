"""sra2 figures."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sra2cli.cli import options as o
from sra2cli.cli.app import app, pick_device, show, user_errors
from sra2cli.core.errors import SetupError

figures = typer.Typer(
    help="Pictures of what a network's tokens hold. Samples of several runs: `sample --grid`.",
    no_args_is_help=True,
)
app.add_typer(figures, name="figures")

Data = Annotated[Path | None, o.what("A latent store. Default: the run's.")]
Step = Annotated[int | None, o.what("Checkpoint of this step; default: newest.")]
Times = Annotated[str, o.how("Noise levels t, with commas; 0 is data, 1 noise.")]
Blocks = Annotated[str | None, o.how("Blocks, with commas.")]
Seed = Annotated[int, o.how("Of the noise.", min=0, max=2**63 - 2)]
Out = Annotated[Path | None, o.where("The PNG. Default: in RUN/figures/.")]


@figures.command()
def pca(
    source: Annotated[Path, typer.Argument(metavar="RUN|CHECKPOINT")],
    index: Annotated[int, o.what("Which image of the store.")] = 0,
    image: Annotated[Path | None, o.what("An image file instead.")] = None,
    label: Annotated[int | None, o.what("Class of --image; default: none.")] = None,
    data: Data = None,
    step: Step = None,
    num_heads: o.NumHeads = None,
    kind: o.Kind = None,
    times: Times = "0.1,0.3,0.5,0.7,0.9",
    blocks: Blocks = None,
    vae: o.Vae = None,
    seed: Seed = 0,
    out: Out = None,
    device: o.Device = None,
    offline: o.Offline = False,
    json: o.Json = False,
) -> None:
    """The paper's Figure 2: VAE feature and tokens over blocks and noise levels, by PCA."""
    with user_errors():
        check_png(out)
        from sra2cli.figures import pca as room
        from sra2cli.figures.opening import What
        from sra2cli.sampling.opening import Options

        what = What(
            data=data,
            times=read_times(times),
            blocks=read_blocks(blocks),
            seed=seed,
            device=pick_device(device),
            options=Options(step=step, vae=vae, num_heads=num_heads, kind=kind, offline=offline),
        )
        show(room.pca(source, what, index=index, image=image, label=label, out=out), json, "pca")


@figures.command()
def probe(
    sources: Annotated[list[Path], typer.Argument(metavar="RUN|CHECKPOINT...")],
    num: Annotated[int, o.what("Images of the store.")] = 512,
    data: Data = None,
    encoder: Annotated[
        str | None,
        o.what("Hold tokens beside its features too: folder or hub name. Those of the store, or:"),
    ] = None,
    images: Annotated[
        Path | None, o.what("What the store was made from, for --encoder to see.")
    ] = None,
    step: Step = None,
    num_heads: o.NumHeads = None,
    kind: o.Kind = None,
    times: Times = "0.1,0.3,0.5,0.7,0.9",
    blocks: Blocks = None,
    seed: Seed = 0,
    out: Out = None,
    device: o.Device = None,
    offline: o.Offline = False,
    json: o.Json = False,
) -> None:
    """How well tokens predict the VAE feature: a linear probe of each block and noise level."""
    with user_errors():
        check_png(out)
        if images is not None and encoder is None:
            raise SetupError("--images is what --encoder sees: name one")
        from sra2cli.figures import probe as room
        from sra2cli.figures.beside import Asked
        from sra2cli.figures.opening import What
        from sra2cli.sampling.opening import Options

        what = What(
            data=data,
            times=read_times(times),
            blocks=read_blocks(blocks),
            seed=seed,
            device=pick_device(device),
            options=Options(step=step, num_heads=num_heads, kind=kind, offline=offline),
        )
        asked = None if encoder is None else Asked(encoder, images)
        found = room.probe(sources, what, num=num, asked=asked, out=out)
        if json:
            show(found, json, "probe")
            return
        show_probe(found)


def check_png(out: Path | None) -> None:
    if out is not None and out.suffix.lower() != ".png":
        raise SetupError(f"--out is a .png, not {out}")


def read_times(text: str) -> tuple[float, ...]:
    try:
        times = tuple(float(part) for part in text.split(","))
    except ValueError:
        times = ()
    if not times or not all(0 <= t <= 1 for t in times):
        raise SetupError(f"--times are numbers in [0, 1], as 0.1,0.5; not '{text}'")
    return times


def read_blocks(text: str | None) -> tuple[int, ...]:
    try:
        return () if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise SetupError(f"--blocks are numbers, as 1,4,8; not '{text}'") from None


def show_probe(found: dict[str, Any]) -> None:
    """R² and CKNNA as tables: a row a block, a column a noise level."""
    from sra2cli.core import console

    for result in found["results"]:
        rows = result["rows"]
        times = list(dict.fromkeys(row["t"] for row in rows))
        blocks = list(dict.fromkeys(row["block"] for row in rows))
        titles = {"r2": "R² of the VAE feature", "cknna": "CKNNA with the VAE feature"}
        if "encoder" in result:
            titles["encoder_cknna"] = f"CKNNA with {result['encoder']['name']}"
        for measure, title in titles.items():
            values = {(row["block"], row["t"]): row[measure] for row in rows}
            cells = [
                ("x_t" if b == 0 else f"block {b}", *(f"{values[b, t]:.3f}" for t in times))
                for b in blocks
            ]
            columns = ("", *(f"t = {t:g}" for t in times))
            console.print_table(f"{title}: {result['source']}", columns, cells)
    console.say(f"picture: {found['picture']}   numbers: {found['file']}")
