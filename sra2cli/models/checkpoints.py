"""Checkpoints that exist in the world: published and trained SiT, REPA and SRA, and our own.

All come out as one of our networks, in our convention (t = 0 is data, v = noise - data); heads are
left out. Ours say what they are; others are recognised by their keys and by what they say of their
training (sit_checkpoints).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from sra2cli.config.settings import PathKind
from sra2cli.core import hub
from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.files import write_json
from sra2cli.models import checkpoint_files, families, sit_checkpoints, training_args
from sra2cli.models.build import BACKBONES, filled, from_record, record_of
from sra2cli.models.checkpoint_files import WEIGHTS
from sra2cli.models.contract import Backbone
from sra2cli.models.sit_checkpoints import KINDS, StateDict, check_kind
from sra2cli.models.statistics import Statistics, statistics_of

CONFIG = "config.json"  # beside the weights in an exported folder
NORM = "bn."  # REPA-E's statistics of latents
WRAPPERS = {"module", "_orig_mod"}  # what DDP, AveragedModel and torch.compile put into keys


@dataclass(frozen=True)
class Loaded:
    """A network from a checkpoint, whose it was, and which weights: "ema", "model" or "bare".

    path: the path it was trained on; linear unless the file says otherwise.
    assumed: what was taken for granted of a foreign file; "" for ours. unsure: it may be wrong.
    statistics: scale and shift of its latents, where the file holds them (REPA-E).
    said: metadata of the file, where it is one of ours.
    """

    model: Backbone
    kind: str
    weights: str
    path: PathKind = "linear"
    assumed: str = ""
    unsure: bool = False
    statistics: Statistics | None = None
    said: Mapping[str, str] = field(default_factory=dict)


def load_model(source: str | Path | Mapping[str, Any], *, num_heads: int | None = None) -> Backbone:
    """Our network from a checkpoint: see `load`."""
    return load(source, num_heads=num_heads).model


def load(
    source: str | Path | Mapping[str, Any],
    *,
    num_heads: int | None = None,
    weights: Literal["ema", "model"] = "ema",
    kind: str | None = None,
    offline: bool = False,
) -> Loaded:
    """Open a checkpoint of SiT, REPA, SRA or ours.

    Args:
        source: a .pt or .safetensors file, a folder made by `export`, a hub name
            (`hf:ORG/NAME[/FILE][@REVISION]`), or a loaded checkpoint.
        num_heads: attention heads. They are not in a state dict: needed for sizes that are not in
            the table (S, B, L, XL).
        weights: which to take where the file holds both. A file without EMA gives what it has.
        kind: what a foreign file is to be taken for, of `KINDS`, where it does not say itself.
        offline: a hub name is looked up in the cache alone.

    Returns:
        The network in eval mode, float32, on the CPU.

    Raises:
        SetupError: no such file; not such a network, or trained for something else; heads unknown.
        DataError: a damaged file, or weights that are not finite.
    """
    if kind is not None and kind not in KINDS:
        raise SetupError(f"--kind is one of {', '.join(KINDS)}, not '{kind}'")
    about: dict[str, str] = {}
    if isinstance(source, Mapping):
        name, content = "the state dict", dict(source)
    else:
        name = str(source)
        content, about = checkpoint_files.read(hub.local(Path(source), offline=offline))
    found, network = _network(content, weights, name)
    state = plain_keys(network, name)
    model = from_record(_record(about, name), state, name)
    if model is not None:
        if kind is not None and KINDS[kind] != model.kind:
            check_kind(name, type(model).__name__, kind)
        path = about.get("path", "linear")
        if path not in get_args(PathKind):
            raise DataError(f"{name} says that its path is '{path}', which this sra2 does not know")
        return Loaded(model, "sra2", found, path, said=about)  # type: ignore[arg-type]
    args = training_args.plain_args(content, about)
    statistics = statistics_of({k: v for k, v in state.items() if k.startswith(NORM)}, name)
    state = {k: v for k, v in state.items() if not k.startswith(NORM)}
    its = families.from_state(state, args, name, num_heads=num_heads, kind=kind)
    if its is None:
        if not isinstance(source, Mapping):
            training_args.refuse_names(Path(source), args, kind)
        its = sit_checkpoints.from_state(state, args, name, num_heads=num_heads, kind=kind)
    model = filled(BACKBONES[its.backbone], its.config.to_dict(), its.state, name)
    return Loaded(model, its.origin, found, its.path, its.assumed, its.unsure, statistics)


def metadata(model: Backbone, path: PathKind) -> dict[str, str]:
    """What a safetensors file says of its network, so that it opens anywhere."""
    return {**{kind: json.dumps(c) for kind, c in record_of(model).items()}, "path": path}


def export(
    model: Backbone,
    folder: Path,
    *,
    path: PathKind = "linear",
    told: Mapping[str, Any] | None = None,
) -> None:
    """Write model.safetensors and config.json, which is there when both are whole; `load` reads
    them back.

    Args:
        told: more that both are to say, plain values by name (see runs.exported).
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    more = {name: json.dumps(value) for name, value in (told or {}).items()}
    save_file(tensors, folder / WEIGHTS, metadata={**metadata(model, path), **more})
    about = {"kind": model.kind, **model.config.to_dict(), "path": path, **(told or {})}
    write_json(folder / CONFIG, about, indent=2)


def plain_keys(state: Mapping[str, Tensor], name: str = "the state dict") -> StateDict:
    """Keys without what wrappers put into them, and without AveragedModel's count.

    Raises:
        SetupError: a tensor is there twice, with and without a wrapper.
    """
    averaged = any(k.startswith("module.") for k in state)
    found: StateDict = {}
    for key, tensor in state.items():
        plain = ".".join(part for part in key.split(".") if part not in WRAPPERS)
        if plain in found:
            raise SetupError(f"{name} holds {plain} twice, as {key} too")
        if not (averaged and key == "n_averaged"):
            found[plain] = tensor
    return found


def _record(about: Mapping[str, str], name: str) -> dict[str, Any]:
    """{kind: config} as the metadata of one of our files hold it."""
    try:
        return {kind: json.loads(about[kind]) for kind in BACKBONES if kind in about}
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is damaged: what it says of its network: {error}") from None


def _network(content: Mapping[Any, Any], weights: str, name: str) -> tuple[str, StateDict]:
    """The network's state dict in a checkpoint: under `ema`, `model` or `state_dict`, or bare.

    Raises:
        SetupError: there is none, or its tensors are not such as a network's.
    """
    there = [k for k in ("ema", "model", "state_dict") if isinstance(content.get(k), Mapping)]
    if weights == "model" and there == ["ema"]:
        raise SetupError(f"{name} holds the EMA alone: --weights ema")
    found = weights if weights in there else (there[-1] if there else "bare")
    inside = content if found == "bare" else content[found]
    tensors = {k: v for k, v in inside.items() if isinstance(v, Tensor)}
    if not tensors:
        keys = ", ".join(str(k)[:40] for k in list(content)[:5]) or "nothing"
        raise SetupError(f"{name} holds no network (keys: {keys})")
    for key, tensor in tensors.items():
        if not isinstance(key, str):
            raise SetupError(f"{name} holds no network: its tensors have no names, as {key!r}")
        if fault := _fault(tensor):
            raise SetupError(f"{name} holds no network: {key} is {fault}")
    return found, tensors


def _fault(tensor: Tensor) -> str | None:
    """Why a tensor cannot be a weight (a count may be whole); None if it can."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.device.type != "cpu":
        return f"a {tensor.layout} tensor on {tensor.device}"
    if tensor.dim() and not (tensor.is_floating_point() and tensor.element_size() > 1):
        return f"{tensor.dtype}, not a float of 16 bits or more"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"{tuple(tensor.shape)}, more than the file holds of it"
    return None
