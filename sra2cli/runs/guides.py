"""Heads that can guide sampling: of a run's checkpoint, or beside the network that was exported."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sra2cli.align import Alignment, build
from sra2cli.config.methods import METHODS, MethodSettings
from sra2cli.config.reading import json_of, read_record
from sra2cli.config.settings import Recipe
from sra2cli.core import hub
from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.files import file_digest
from sra2cli.core.finite import check_finite
from sra2cli.models.contract import Shape
from sra2cli.runs.run import Checkpoint

HEAD = "head.safetensors"  # beside an exported network
OF, METHOD, SETTINGS = "of", "method", "settings"  # its metadata; of: digest of the run's file
Guide = tuple[Alignment, dict[str, str]]  # and what it is, for records


def of_checkpoint(recipe: Recipe, checkpoint: Checkpoint, weights: str, shape: Shape) -> Guide:
    """The first method of a run that reads something off its block, with its head.

    Raises:
        SetupError: no such method, or a run that began without the EMA of heads.
    """
    names = [name for name, s in recipe.align.items() if s.reads and s.weight]
    if not names:
        raise SetupError(
            "--self-guidance needs a head that reads the latent or the velocity: that of sra2 "
            f"(without cosine or target_norm) or internal; {checkpoint.path} has none"
        )
    part = "ema_heads" if weights == "ema" else "heads"
    file = f"{part}.safetensors"
    if file not in checkpoint.meta["files"]:
        raise SetupError(
            f"--self-guidance: {checkpoint.path} has no {file}: its run was begun "
            "without the EMA of heads; --weights model guides the newest checkpoint of a run"
        )
    name, found = names[0], checkpoint.weights(part)
    own = {k.removeprefix(f"{name}."): v for k, v in found.items() if k.startswith(f"{name}.")}
    method = built(name, recipe.align[name], own, shape, f"{checkpoint.path}/{file}")
    return method, {"method": name, "weights": checkpoint.meta["files"][file]}


def beside(source: Path, shape: Shape, network: str, *, offline: bool) -> Guide:
    """What `sra2 export --head` wrote beside a network: a folder, file or hub name.

    Args:
        source: a hub name is pinned; of several processes all must ask.
        network: digest in its run of what the head is to be of.
        offline: a hub name is looked up in the cache alone.

    Raises:
        SetupError: there is none. DataError: damaged, or of another network.
    """
    alone = f"--self-guidance needs a head: {source} is a network alone, without `export --head`"
    try:
        file = hub.local(hub.pinned(_named(source), offline=offline))
    except SetupError as error:
        raise SetupError(f"{alone} ({error})") from None
    if not file.is_file():
        raise SetupError(alone)
    try:
        with safe_open(file, framework="pt") as opened:
            about = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        name = about[METHOD]
        values = json_of(about[SETTINGS].encode(), dict[str, Any])
        settings: MethodSettings = read_record(METHODS[name].settings, values)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DataError(f"{file} is damaged, or no head of sra2: {error}") from None
    if about.get(OF) != network:
        raise DataError(f"{file} is the head of another network than {source}: export again")
    check_finite(tensors, str(file))
    method = built(name, settings, tensors, shape, str(file))
    return method, {"method": name, "weights": file_digest(file)}


def write(guide: Alignment, said: Mapping[str, str], folder: Path, network: str) -> None:
    """The head beside an exported network."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in guide.state_dict().items()}
    about = {OF: network, METHOD: said["method"], SETTINGS: json.dumps(vars(guide.settings))}
    save_file(tensors, folder / HEAD, metadata=about)


def built(
    name: str, settings: MethodSettings, tensors: Mapping[str, Tensor], shape: Shape, file: str
) -> Alignment:
    """A method with its weights, frozen; DataError where they are not its own."""
    try:
        method: Alignment = build({name: settings}, shape)[name]  # type: ignore[assignment]
        method.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())[:160]
        raise DataError(f"{file} is not of this head: {why}") from None
    return method.eval().requires_grad_(False)


def _named(source: Path) -> Path:
    """Where the head of a network lies."""
    if hub.is_name(source):
        at = hub.parsed(source)
        return Path(str(replace(at, file=str(Path(at.file).with_name(HEAD)))))
    return source / HEAD if source.is_dir() else source.with_name(HEAD)
