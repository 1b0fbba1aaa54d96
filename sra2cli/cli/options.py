"""Options that several commands share: each is declared here once, with its words and its panel."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer


def _panel(title: str) -> Callable[..., Any]:
    """Options of one panel of a command's help."""

    def option(
        text: str,
        *names: str,
        min: int | None = None,
        max: int | None = None,
        complete: Callable[[str], list[str]] | None = None,
    ) -> Any:
        return typer.Option(
            *names, help=text, rich_help_panel=title, min=min, max=max, autocompletion=complete
        )

    return option


what, how, where, machine = (_panel(title) for title in ("What", "How", "Where", "Machine"))


def recipes(incomplete: str) -> list[str]:
    """For completion in a shell."""
    from sra2cli.config.recipe import names

    return [name for name in names() if name.startswith(incomplete)]


def presets(incomplete: str) -> list[str]:
    from sra2cli.sampling.settings import PRESETS

    return [name for name in PRESETS if name.startswith(incomplete)]


# Where results go, and in which form.
Json = Annotated[bool, where("Print the result as JSON on stdout.", "--json")]
# The machine.
Device = Annotated[str | None, machine("cpu, cuda, cuda:N or mps; default: cuda if there.")]
Processes = Annotated[int | None, machine("Processes to start; default: one for each visible GPU.")]
Offline = Annotated[bool, machine("Never touch the network.", "--offline")]
DryRun = Annotated[bool, machine("Check everything, say what it will take.", "--dry-run")]
Compile = Annotated[bool, machine("torch.compile the blocks.", "--compile")]
Precision = Annotated[
    str | None, machine("Of drawing: fp32, tf32, bf16 or fp16. [default: tf32 on CUDA, else fp32]")
]
Batch = Annotated[
    int,
    machine("Images at a time. On a CPU it does not change them; on a GPU perhaps last digits."),
]
# What is opened.
Overrides = Annotated[
    list[str] | None, what("Change a setting: key.sub=value. Repeatable.", "--set")
]
NumHeads = Annotated[
    int | None, what("Attention heads, for checkpoints of sizes that are not in the table.")
]
Kind = Annotated[
    str | None, what("What a file is that does not say it: sit or repa, by their time.")
]
Vae = Annotated[
    str | None,
    what("Decode with this one: folder, hub name, 'digits' or 'emoji'; default: the store's."),
]
# How a source of images is read, where there are several ways.
Image = Annotated[str | None, what("The column of images; of samples in files, a suffix as jpg.")]
Label = Annotated[
    str | None, what("The column of labels; of files cls, json, a key of it; or none.")
]
Split = Annotated[str | None, what("The split to read: train, val, …")]
ClassesFrom = Annotated[str | None, what("folders (all of them are classes) or dataset.json.")]
Captions = Annotated[
    str | None,
    what(
        "Where captions are: auto, a file that lists them (metadata.csv, captions_train2014.json), "
        "a column of parquet; of files txt, json or a key of it."
    ),
]
SkipUncaptioned = Annotated[
    bool, what("Leave out images that have no caption.", "--skip-uncaptioned")
]
LatentStats = Annotated[
    str | None,
    what("Statistics of its latents, for a checkpoint of others: a file, as latents_stats.pt."),
]
TextEncoder = Annotated[
    str | None,
    what("What reads captions: words, a CLIP or T5 folder or hub name; default: the network's."),
]
Num = Annotated[int | None, what("Samples to draw.")]
# What a network that is told captions draws.
Prompt = Annotated[list[str] | None, what("A text to draw. Repeatable.", "--prompt")]
PromptsFrom = Annotated[
    Path | None, what("A file with a prompt on each line, or a latent store: its captions.")
]
NegativePrompt = Annotated[
    str | None, how("A text that guidance leads away from; default: the empty one.")
]
# How images are drawn.
Preset = Annotated[
    str | None,
    how(
        "Of a paper: sra2, repa, sit, reg, internal, maskdit, lightningdit, t2i; or digits, emoji, "
        "emoji-class. Options override.",
        complete=presets,
    ),
]
Labels = Annotated[
    str | None, how("random, balanced, or classes: 0,1,2 or cat,dog. [default: random]")
]
Solver = Annotated[
    str | None, how("em (SDE), euler, heun or edm (ODE; MaskDiT: edm). [default: em]")
]
LastStep = Annotated[float | None, how("em: length of its noise-free last step. [default: 0.04]")]
Shift = Annotated[
    float | None,
    how("euler, heun: of the grid of times; LightningDiT's 0.3 is 3.333 here. [default: 1]"),
]
ClassCfg = Annotated[
    float | None, how("REG: guidance scale of the class token; 0: none. [default: as --cfg]")
]
CfgChannels = Annotated[int | None, how("Guide the first n latent channels only.")]
# How they are judged.
Metrics = Annotated[
    str | None,
    how(
        "Of fid,sfid,is,precision,recall,kid; of fdd,kdd (DINOv2); or fd-digits, fd-emoji. "
        "Default: the first five; of what was trained on digits or emoji their own.",
        "--metrics",
        "--metric",
    ),
]
Ref = Annotated[str | None, what("An ADM .npz, or images; fd-digits and fd-emoji have their own.")]
Inception = Annotated[
    Path | None, what("Inception's weights; default: in torch's cache.", "--inception", "--weights")
]
PickscoreModel = Annotated[
    str | None, what("PickScore's network: folder or hub name; default: the published one.")
]
ClipModel = Annotated[
    str | None, what("The CLIP of clip-score: folder or hub name; default: ViT-L/14.")
]
DinoModel = Annotated[
    str | None, what("The DINOv2 of fdd and kdd: folder or hub name; default: ViT-L/14.")
]
