"""sra2 eval."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sra2cli.cli.app import Device, Json, app, one_of, pick_device, user_errors


@app.command(name="eval")
def evaluate(
    samples: Annotated[
        Path,
        typer.Argument(help="From `sra2 sample`; any folder, zip or tar of images; an ADM .npz."),
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
        Path | None, typer.Option(help="JSON of the result; default: in or beside SAMPLES.")
    ] = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Judge samples."""
    with user_errors():
        one_of("--distances", distances, ("float16", "float32"))
        from sra2cli import evaluate as room

        result = room.evaluate(
            samples,
            metric=metrics,
            ref=ref,
            weights=weights,
            save_stats=save_stats,
            crop=crop,
            distances=distances,  # type: ignore[arg-type]
            batch=batch,
            device=pick_device(device),
            out=out,
        )
        show(result, json)


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
