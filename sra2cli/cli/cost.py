"""sra2 cost."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sra2cli.cli import options as o
from sra2cli.cli.app import app, one_of, pick_device, refuse_given, user_errors


@app.command()
def cost(
    ctx: typer.Context,
    baseline: Annotated[
        str, o.what("Beside SiT and SRA 2: repa, or another method; all; sit: nothing more.")
    ] = "all",
    model: Annotated[
        str, o.what("What is counted: a size of SiT, or LightningDiT-XL/1, MaskDiT-XL/2.")
    ] = "XL/2",
    resolution: Annotated[int, o.what("Of the images.")] = 256,
    measure: Annotated[
        bool, o.how("Latency and throughput here, too.", "--measure/--no-measure")
    ] = True,
    measured_model: Annotated[
        str | None, o.how("What is measured. Default: --model; on a CPU B/2.")
    ] = None,
    batch: Annotated[
        int | None, o.machine("Of the measurements. Default: 256; on a CPU 4.", min=1)
    ] = None,
    rounds: Annotated[
        int | None, o.how("Turns of each method. Default: 20; on a CPU 7.", min=1)
    ] = None,
    out: Annotated[Path | None, o.where("JSON of the result. Default: runs/cost/.")] = None,
    show: Annotated[
        Path | None, o.where("Print a result from another machine instead.", "--show")
    ] = None,
    device: o.Device = None,
    json: o.Json = False,
) -> None:
    """What alignment costs: parameters and GMACs counted, time and memory measured (Table 5)."""
    with user_errors():
        if show is not None or not measure:
            refuse_given(ctx, ("measured_model", "batch", "rounds"), "is for what is measured here")
        from sra2cli.config.methods import METHODS

        one_of("--baseline", baseline, (*METHODS, "sit", "all"))
        from sra2cli.core import console
        from sra2cli.tables import cost as room
        from sra2cli.tables import methods as kinds

        if show is not None:
            result = room.load_result(show)
        else:
            device = pick_device(device)
            rows = room.counted(model, kinds.methods_with(baseline, model), resolution=resolution)
            if not json:  # at once; measuring takes minutes
                console.print_table(*room.counted_table(rows, model, resolution))
                say_text(kinds.text_share(model, resolution=resolution))
            result = room.cost(
                rows,
                model,
                resolution=resolution,
                measure=measure,
                measured_model=measured_model,
                batch=batch,
                rounds=rounds,
                device=device,
                out=out,
            )
        if json:
            console.print_json(result)
            return
        if show is not None:
            counted = room.counted_table(result["counted"], result["model"], result["resolution"])
            console.print_table(*counted)
            say_text(result.get("text_encoder"))
        if result["measured"] is not None:
            for table in room.measured_tables(result):
                console.print_table(*table)
            say_how(result["measured"])
        if show is None and result["file"] is not None:
            console.say(f"written: {result['file']}")


def say_text(share: dict[str, Any] | None) -> None:
    """What reading captions adds, for a model that is told them."""
    from sra2cli.core import console

    if share is not None:
        console.say(
            f"reading captions in the step, with {share['name']}: {share['parameters'] / 1e6:.1f}M "
            f"parameters, {share['gmacs']:.2f} GMACs a caption, {share['gmacs_percent']:+.1f}%; "
            "nothing with --text-features in the store"
        )


def say_how(found: dict[str, Any]) -> None:
    """What the measured percentages are of, and whether they are in the order of the MACs."""
    from sra2cli.core import console

    console.say(
        "percentages are against SiT's turns in the same rounds; the methods' own times were "
        "taken one after the other"
    )
    console.say("REPA's encoder: " + found["repa_encoder"])
    for line in found["order"]:
        console.warn(f"not in the order of MACs: {line}")
    if not found["order"]:
        console.say("forward latencies are in the order of the MACs")
