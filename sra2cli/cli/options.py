"""Options that several commands share: each is declared here once, with its words and its panel."""

from pathlib import Path
from typing import Annotated

import typer

WHAT, HOW, WHERE, MACHINE = "What", "How", "Where", "Machine"


def recipes(incomplete: str) -> list[str]:
    """For completion in a shell."""
    from sra2cli.config.recipe import names

    return [name for name in names() if name.startswith(incomplete)]


def presets(incomplete: str) -> list[str]:
    from sra2cli.sampling.settings import PRESETS

    return [name for name in PRESETS if name.startswith(incomplete)]


# Where results go, and in which form.
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=WHERE)
]
# The machine.
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda or cuda:N; default: cuda if there.", rich_help_panel=MACHINE),
]
Processes = Annotated[
    int | None,
    typer.Option(
        help="Processes to start; default: one for each visible GPU.", rich_help_panel=MACHINE
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Never touch the network.", rich_help_panel=MACHINE)
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Check everything, say what it will take.", rich_help_panel=MACHINE
    ),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="torch.compile the blocks.", rich_help_panel=MACHINE)
]
Precision = Annotated[
    str | None,
    typer.Option(help="Of drawing: fp32, bf16 or fp16. [default: fp32]", rich_help_panel=MACHINE),
]
Batch = Annotated[
    int,
    typer.Option(
        help="Images at a time. On a CPU it does not change them; on a GPU perhaps last digits.",
        rich_help_panel=MACHINE,
    ),
]
# What is opened.
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Change a setting: key.sub=value. Repeatable.", rich_help_panel=WHAT
    ),
]
NumHeads = Annotated[
    int | None,
    typer.Option(
        help="Attention heads, for checkpoints of sizes that are not in the table.",
        rich_help_panel=WHAT,
    ),
]
Kind = Annotated[
    str | None,
    typer.Option(help="Take a file for this in spite of its name: sit.", rich_help_panel=WHAT),
]
Vae = Annotated[
    str | None,
    typer.Option(
        help="Decode with this first stage: folder, hub name or 'digits'; default: the store's.",
        rich_help_panel=WHAT,
    ),
]
Num = Annotated[int | None, typer.Option(help="Samples to draw.", rich_help_panel=WHAT)]
# How images are drawn.
Preset = Annotated[
    str | None,
    typer.Option(
        help="Of a paper: sra2, repa, sit; or digits. Options override.",
        rich_help_panel=HOW,
        autocompletion=presets,
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="random, balanced, or classes as 0,1,2. [default: random]", rich_help_panel=HOW
    ),
]
Solver = Annotated[
    str | None,
    typer.Option(help="em (SDE), euler or heun (ODE). [default: em]", rich_help_panel=HOW),
]
LastStep = Annotated[
    float | None,
    typer.Option(
        help="em: length of its noise-free last step. [default: 0.04]", rich_help_panel=HOW
    ),
]
CfgChannels = Annotated[
    int | None,
    typer.Option(help="Guide the first n latent channels only.", rich_help_panel=HOW),
]
# How they are judged.
Metrics = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        "--metric",
        help="Of fid,sfid,is,precision,recall,kid; or fd-digits. Default: the first five; of what "
        "was trained on the digits fd-digits.",
        rich_help_panel=HOW,
    ),
]
Ref = Annotated[
    str | None,
    typer.Option(
        help="An ADM .npz, or images; fd-digits has its own.",
        rich_help_panel=WHAT,
    ),
]
Inception = Annotated[
    Path | None,
    typer.Option(
        "--inception",
        "--weights",
        help="Inception's weights; default: in torch's cache.",
        rich_help_panel=WHAT,
    ),
]
