"""The model card of an export: README.md, of what the run's own records say and nothing else."""

from pathlib import Path

import yaml

from sra2cli import __version__
from sra2cli.core import hub
from sra2cli.data.store_info import StoreInfo
from sra2cli.encoders.vae import PACKAGED
from sra2cli.reports.curves import LEAST
from sra2cli.reports.evaluations import Evaluation, named, value
from sra2cli.reports.evaluations import evaluations as of_runs
from sra2cli.reports.told import tell
from sra2cli.runs.network import Network
from sra2cli.runs.run import Run
from sra2cli.training.counting import parameters as count

Row = tuple[str, str]


def parameters(network: Network) -> int:
    """Of the network."""
    return count(network.model)


def evaluations(run: Run, network: Network) -> list[Evaluation]:
    """Those of this very checkpoint that lie in the run, and those made while it trained."""
    found, _ = of_runs([tell(run.path, run.path.name, LEAST)], {})
    return [one for one in found if of_this(one, network)]


def of_this(evaluation: Evaluation, network: Network) -> bool:
    about = network.about
    if evaluation.setting.get("by"):  # the training judges the EMA
        return evaluation.step == about["step"] and about["weights"] == "ema"
    return evaluation.made.get("checkpoint") == about["checkpoint"]


def plain_name(reference: str | None) -> str:
    """A file's name without where it lay; hub names and none as they are."""
    if reference is None or hub.is_name(reference):
        return reference or "–"
    return Path(reference).name if Path(reference).is_absolute() else reference


def text(run: Run, network: Network, found: list[Evaluation]) -> str:
    """The card. found: by `evaluations`."""
    about, info = network.about, network.store
    assert info is not None
    told = network.model.told == "text"
    front = {
        "library_name": "sra2",
        "pipeline_tag": "text-to-image" if told else "unconditional-image-generation",
        "tags": ["diffusion", network.model.kind, *run.recipe.align],
    }
    recipe = {k: v for k, v in run.recipe.to_dict().items() if k != "log"}
    options = ' --prompt "…"' if told else ""
    options += "".join(f" {option} FOLDER" for _, _, option in on_this_machine(info))
    return f"""---
{yaml.safe_dump(front, sort_keys=False)}# license: say it here, as mit or cc-by-nc-4.0
---

# {about["recipe"]}, {about["step"]:,} steps

{"The EMA of the" if about["weights"] == "ema" else "The"} weights of a latent diffusion network, \
trained by sra2: {network.model.kind} {run.recipe.model.size}, method {about["method"]}.

## Images from it

FOLDER is the folder this file lies in, or `hf:ORG/NAME` where it lies on the hub; the file says
which first stage decodes its latents, and their scale.

```
sra2 sample FOLDER --num 16{options}
```

```python
from sra2cli import load_model

model = load_model("FOLDER")  # v, tokens = model(x_t, t, y, taps=[8]); t = 0 is data
```

## Training

{table(of_training(run, network))}

<details><summary>The whole recipe</summary>

```yaml
{yaml.safe_dump(recipe, sort_keys=False)}```

</details>

## Data

{table(of_data(run, info))}

## Evaluations

{of_evaluations(found)}

## Licence

Not said yet: `license:` at the top of this file is for whoever publishes it. The images it was
trained on and the first stage have terms of their own.
"""


def on_this_machine(info: StoreInfo) -> list[tuple[str, str, str]]:
    """What it needs to draw and others can only have from who exports it: what, name, option."""
    asked = (
        ("VAE", info.vae, "--vae"),
        ("text encoder", info.text_encoder, "--text-encoder"),
    )
    return [row for row in asked if row[1] not in ("", *PACKAGED) and Path(row[1]).exists()]


def table(rows: list[Row]) -> str:
    lines = ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines)


def of_training(run: Run, network: Network) -> list[Row]:
    """Rows of what was trained, how long, from what and on what."""
    recipe, about, record = run.recipe, network.about, run.about
    train, step, machine = recipe.train, about["step"], record.get("environment", {})
    epochs = step * train.batch / record["store"]["count"]
    size = f"{network.model.kind} {recipe.model.size}"
    warm = f", {train.lr_warmup:,} steps of warm-up" if train.lr_warmup else ""
    rows = [
        ("recipe", about["recipe"]),
        ("network", f"{size}, {count(network.model):,} parameters"),
        ("method", about["method"]),
        ("path", f"{recipe.path.kind}, times {recipe.path.times}"),
        ("steps", f"{step:,} of {train.steps:,}, batch {train.batch}: {epochs:.1f} epochs"),
        ("learning rate", f"{train.lr:g}, {train.lr_decay}{warm}"),
        ("EMA", f"{train.ema:g}" if about["weights"] == "ema" else "not taken"),
        ("precision", train.precision),
        ("seed", str(recipe.seed)),
    ]
    for name, word in (("init", "began from"), ("teacher", "frozen teacher")):
        if origin := record.get(name):
            rows.append((word, f"{plain_name(origin['path'])} (BLAKE2b {origin['digest']})"))
    made = [f"{name} {machine[name]}" for name in ("sra2", "torch", "python") if name in machine]
    rows.append(("trained with", ", ".join([*made, f"on {machine.get('device', '?')}"])))
    rows.append(("source", f"commit {machine.get('git') or 'not known'}"))
    rows.append(("weights", f"{about['weights']}, BLAKE2b {about['checkpoint']} in the run"))
    rows.append(("exported with", f"sra2 {__version__}"))
    return rows


def of_data(run: Run, info: StoreInfo) -> list[Row]:
    """Rows of the store it was trained on."""
    store = run.about["store"]
    sums = ", ".join(f"{name} {value}" for name, value in store["checksums"].items())
    classes = f"{info.classes:,} classes" if info.classes else "no classes"
    rows = [
        ("images", f"{store['count']:,} of {info.resolution} px, {classes}, cropped {info.crop}"),
        ("latents", f"{info.channels} x {info.latent} x {info.latent}"),
        ("first stage", f"{plain_name(info.vae)} (fingerprint {info.vae_fingerprint})"),
        ("scale and shift", f"{info.scale}, {info.shift}"),
        ("mirrored images", "yes" if info.mirrored else "no"),
    ]
    if info.text_encoder:
        reader = f"{plain_name(info.text_encoder)} (fingerprint {info.text_fingerprint})"
        rows.append(("captions read by", reader))
    if info.encoder:
        encoder = f"{plain_name(info.encoder)} (fingerprint {info.encoder_fingerprint})"
        rows.append(("image features of", encoder))
    return [*rows, ("checksums", sums)]


def of_evaluations(found: list[Evaluation]) -> str:
    """A row an evaluation, with the settings it was made with; then what would mislead."""
    if not found:
        return "There are none of this checkpoint."
    lines = ["| numbers | drawn | reference | judged with |", "| --- | --- | --- | --- |"]
    for one in found:
        numbers = ", ".join(f"{named(name)} {value(name, v)}" for name, v in one.values.items())
        reference = plain_name(one.setting["reference"])
        with_what = f"{one.made.get('judged through', '–')}; {one.made.get('versions', '–')}"
        lines.append(f"| {numbers} | {one.words} | {reference} | {with_what} |")
    warnings = [f"- {w}" for w in dict.fromkeys(w for one in found for w in one.warnings)]
    return "\n".join([*lines, *([""] if warnings else []), *warnings])
