"""Checkpoints that exist in the world: published and trained SiT, REPA and SRA, and our own.

All come out as one of our networks, in our convention (t = 0 is data, v = noise - data); heads are
left out. Ours say what they are; others are recognised by their keys (sit_checkpoints).
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sra2cli.config.settings import PathKind
from sra2cli.core.errors import DataError, SetupError
from sra2cli.models import sit_checkpoints
from sra2cli.models.build import BACKBONES, from_record, record_of
from sra2cli.models.contract import Backbone
from sra2cli.models.sit_checkpoints import StateDict

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # names in an exported folder
KINDS = ("sit",)  # what a foreign file can be taken for


@dataclass(frozen=True)
class Loaded:
    """A network from a checkpoint, whose it was, and which weights: "ema", "model" or "bare".

    path: the path it was trained on; linear unless the file says otherwise.
    assumed: what was taken for granted of a foreign file; "" for ours.
    """

    model: Backbone
    kind: str
    weights: str
    path: PathKind = "linear"
    assumed: str = ""


def load_model(source: str | Path | Mapping[str, Any], *, num_heads: int | None = None) -> Backbone:
    """Our network from a checkpoint: see `load`."""
    return load(source, num_heads=num_heads).model


def load(
    source: str | Path | Mapping[str, Any],
    *,
    num_heads: int | None = None,
    weights: Literal["ema", "model"] = "ema",
    kind: str | None = None,
) -> Loaded:
    """Open a checkpoint of SiT, REPA, SRA or ours.

    Args:
        source: a .pt or .safetensors file, a folder made by `export`, or a loaded checkpoint.
        num_heads: attention heads. They are not in a state dict: needed for sizes that are not in
            the table (S, B, L, XL).
        weights: which to take where the file holds both. A file without EMA gives what it has.
        kind: what a foreign file is to be taken for, of `KINDS`, where its name says otherwise.

    Returns:
        The network in eval mode, float32, on the CPU.

    Raises:
        SetupError: no such file; not such a network; heads unknown.
        DataError: a damaged file.
    """
    if kind is not None and kind not in KINDS:
        raise SetupError(f"--kind is one of {', '.join(KINDS)}, not '{kind}'")
    about: dict[str, str] = {}
    if isinstance(source, Mapping):
        name, content = "the state dict", dict(source)
    else:
        name = str(source)
        content, about = _read(Path(source))
    path: PathKind = "cosine" if about.get("path") == "cosine" else "linear"
    found, network = _network(content, weights, name)
    state = plain_keys(network)
    model = from_record({k: json.loads(about[k]) for k in BACKBONES if k in about})
    if model is not None:
        _load_strictly(model, state, name)
        return Loaded(model.eval().requires_grad_(False), "sra2", found, path)
    if not isinstance(source, Mapping):
        sit_checkpoints.refuse_dit(Path(source), content.get("args"), kind)
    sit, state, origin = sit_checkpoints.from_state(state, num_heads, name)
    _load_strictly(sit, state, name)
    assumed = f"taken for a SiT as {'SiT' if origin == 'SiT' else 'REPA and SRA'} trains them: "
    assumed += f"{path} path, velocity; DiT files look the same"
    return Loaded(sit.eval().requires_grad_(False), origin, found, path, assumed)


def metadata(model: Backbone, path: PathKind) -> dict[str, str]:
    """What a safetensors file says of its network, so that it opens anywhere."""
    return {**{kind: json.dumps(c) for kind, c in record_of(model).items()}, "path": path}


def export(model: Backbone, folder: Path, *, path: PathKind = "linear") -> None:
    """Write model.safetensors and config.json; `load` reads them back."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata=metadata(model, path))
    about = {"kind": model.kind, **model.config.to_dict(), "path": path}
    (folder / CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def plain_keys(state: Mapping[str, Tensor]) -> StateDict:
    """Keys without what DDP (`module.`) and torch.compile (`_orig_mod.`) put into them."""
    wrappers = {"module", "_orig_mod"}
    return {".".join(p for p in k.split(".") if p not in wrappers): v for k, v in state.items()}


def _load_strictly(model: Backbone, state: StateDict, name: str) -> None:
    """Load, or say which keys or shapes differ first."""
    wanted = model.state_dict()
    faults = [f"no {k}" for k in wanted if k not in state]
    faults += [f"unknown {k} {tuple(state[k].shape)}" for k in state if k not in wanted]
    faults += [
        f"{k} is {tuple(state[k].shape)} instead of {tuple(tensor.shape)}"
        for k, tensor in wanted.items()
        if k in state and state[k].shape != tensor.shape
    ]
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise SetupError(
            f"{name} does not fit a {type(model).__name__}: {'; '.join(faults[:3])}{more}"
        )
    model.load_state_dict(state)


def _network(content: Mapping[str, Any], weights: str, name: str) -> tuple[str, StateDict]:
    """The network's state dict in a checkpoint: under `ema`, `model` or `state_dict`, or bare."""
    there = [k for k in ("ema", "model", "state_dict") if isinstance(content.get(k), Mapping)]
    if weights == "model" and there == ["ema"]:
        raise SetupError(f"{name} holds the EMA alone: --weights ema")
    found = weights if weights in there else (there[-1] if there else "bare")
    inside = content if found == "bare" else content[found]
    tensors = {k: v for k, v in inside.items() if isinstance(v, Tensor)}
    if not tensors:
        keys = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise SetupError(f"{name} holds no network (keys: {keys})")
    return found, tensors


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The content of a checkpoint file, and what it says of itself (see `metadata`)."""
    if path.is_dir():
        path = path / WEIGHTS
    if not path.is_file():
        raise SetupError(f"no checkpoint {path}")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as f:
                about = f.metadata() or {}
            return load_file(path), about
        # Trained checkpoints pickle argparse.Namespace: that class alone is let in.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is damaged or not a checkpoint: {_first_line(error)}") from None
    except Exception as error:  # torch raises pickle's own errors for what it does not allow
        raise DataError(f"{path} cannot be opened safely: {_first_line(error)}") from None
    if not isinstance(content, Mapping):
        raise SetupError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return dict(content), {}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
