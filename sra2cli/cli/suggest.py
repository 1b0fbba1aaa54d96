"""sra2 suggest."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sra2cli.cli import options as o
from sra2cli.cli.app import app, chosen_source, pick_device, user_errors


@app.command()
def suggest(
    images: Annotated[
        Path, typer.Argument(help="Images of your own: a folder, or what else extract takes.")
    ],
    out: Annotated[Path | None, o.where("The recipe to write. Default: NAME.yaml.")] = None,
    vae: Annotated[
        str | None, o.what("A first stage that is there: folder, hub name. Default: train one.")
    ] = None,
    image: o.Image = None,
    label: o.Label = None,
    split: o.Split = None,
    classes_from: o.ClassesFrom = None,
    device: o.Device = None,
    offline: o.Offline = False,
    json: o.Json = False,
) -> None:
    """Look at images of your own; write a recipe that fits them and this machine, and say the
    commands to go on with."""
    with user_errors():
        from sra2cli.core import console
        from sra2cli.suggest.suggest import suggest as room

        found = room(
            images,
            choice=chosen_source(image, label, split, classes_from),
            out=out,
            vae=vae,
            device=pick_device(device),
            offline=offline,
        )
        if json:
            console.print_json(found)
            return
        console.print_table(str(images), ("", ""), seen_rows(found))
        lines = [f"- {line}" for line in found["why"]]
        expected = found["expected"]
        times = f"training {minutes(expected['train_minutes'])}"
        if expected["vae_minutes"]:
            times = f"first stage {minutes(expected['vae_minutes'])}, {times}"
        lines += [f"- expected: {times}; timed here just now, with what else was running"]
        print("\n".join(["", f"{found['recipe']} is written:", *lines, "", *found["commands"]]))


def seen_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What was seen, as a table."""
    images, machine = found["images"], found["machine"]
    least, median, largest = images["sides"]
    classes = "none"
    if images["classes"]:
        classes = f"{images['classes']:,}, of {images['fewest']:,} to {images['most']:,} images"
    gpu = machine["gpu"]
    rows = [
        ("images", f"{images['count']:,}"),
        ("classes", classes),
        ("captions", f"of {images['captioned']:,} images" if images["captioned"] else "none"),
        ("short sides", f"{least} to {largest} px, median {median}"),
        ("cores", str(machine["cores"])),
        ("memory", f"{machine['memory_gb']:.0f} GB"),
        ("GPU", f"{gpu}, {machine['gpu_memory_gb']:.0f} GB" if gpu else "none"),
    ]
    if images["unreadable"]:
        rows.append(("cannot be read", f"{images['unreadable']} of those looked at"))
    return [*rows, *(("note", note) for note in found["notes"])]


def minutes(value: float) -> str:
    """5 min, 2.5 h."""
    return f"{value:.0f} min" if value < 90 else f"{value / 60:.1f} h"
