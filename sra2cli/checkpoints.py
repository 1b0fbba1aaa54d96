"""Checkpoints that exist in the world: published and trained SiT, REPA and SRA, and our own.

All come out as our SiT, in our convention (t = 0 is data, v = noise - data); heads are left out.
A checkpoint is recognised by its keys:

    SiT   final_layer.linear has 2C channels per pixel; time reversed, sign flipped
    REPA  projectors.*          SRA   ap_head.*          ours  neither
"""

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sra2cli.errors import DataError, SetupError
from sra2cli.path import PathKind
from sra2cli.sit import FREQUENCIES, SIZES, SiT, SiTConfig

StateDict = dict[str, Tensor]
Kind = Literal["SiT", "REPA", "SRA", "sra2"]
HEADS = {"REPA": "projectors.", "SRA": "ap_head."}  # keys of heads, by who trained them
FOREIGN = {  # keys of networks that are not a SiT
    "mlp.w12": "LightningDiT (SwiGLU, rotary positions)",
    "cls_projectors2": "REG (a class token)",
    "wg_norm": "REG (a class token)",
}
WEIGHTS, CONFIG = "model.safetensors", "config.json"  # names in an exported folder


@dataclass(frozen=True)
class Loaded:
    """A network from a checkpoint, whose it was, and which weights: "ema", "model" or "bare".

    path: the path it was trained on; linear unless the file says otherwise.
    """

    model: SiT
    kind: Kind
    weights: str
    path: PathKind = "linear"


def load_model(source: str | Path | Mapping[str, Any], *, num_heads: int | None = None) -> SiT:
    """Our SiT from a checkpoint: see `load`."""
    return load(source, num_heads=num_heads).model


def load(
    source: str | Path | Mapping[str, Any],
    *,
    num_heads: int | None = None,
    weights: Literal["ema", "model"] = "ema",
) -> Loaded:
    """Open a checkpoint of SiT, REPA, SRA or ours.

    Args:
        source: a .pt or .safetensors file, a folder made by `export`, or a loaded checkpoint.
        num_heads: attention heads. They are not in a state dict: needed for sizes that are not in
            the table (S, B, L, XL).
        weights: which to take where the file holds both. A file without EMA gives what it has.

    Returns:
        The network in eval mode, float32, on the CPU.

    Raises:
        SetupError: no such file; not such a network; heads unknown.
        DataError: a damaged file.
    """
    config: SiTConfig | None = None
    path: PathKind = "linear"
    if isinstance(source, Mapping):
        name, content = "the state dict", dict(source)
    else:
        name = str(source)
        content, about = _read(Path(source))
        if "sit" in about:
            config = SiTConfig(**json.loads(about["sit"]))
        path = "cosine" if about.get("path") == "cosine" else "linear"
    found, network = _network(content, weights, name)
    state = plain_keys(network)
    kind = recognise(state, name)
    state = {k: v for k, v in state.items() if not k.startswith(tuple(HEADS.values()))}
    if kind == "SiT":
        state = from_sit(state)
    config = config or infer_config(state, num_heads, name)
    model = SiT(config)
    _load_strictly(model, state, name)
    return Loaded(model.eval().requires_grad_(False), kind, found, path)


def metadata(config: SiTConfig, path: PathKind) -> dict[str, str]:
    """What a safetensors file says of its network, so that it opens anywhere."""
    return {"sit": json.dumps(config.to_dict()), "path": path}


def export(model: SiT, folder: Path, *, path: PathKind = "linear") -> None:
    """Write model.safetensors and config.json; `load` reads them back."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata=metadata(model.config, path))
    about = {**model.config.to_dict(), "path": path}
    (folder / CONFIG).write_text(json.dumps(about, indent=2) + "\n")


def plain_keys(state: Mapping[str, Tensor]) -> StateDict:
    """Keys without what DDP (`module.`) and torch.compile (`_orig_mod.`) put into them."""
    wrappers = {"module", "_orig_mod"}
    return {".".join(p for p in k.split(".") if p not in wrappers): v for k, v in state.items()}


def recognise(state: Mapping[str, Tensor], name: str) -> Kind:
    """Whose network this is, by its keys; SetupError for networks that are not a SiT."""
    for part, what in FOREIGN.items():
        if any(part in key for key in state):
            raise SetupError(f"{name} is a {what} checkpoint, which sra2 does not open")
    needed = {  # with their number of dimensions: what recognising and converting look at
        "x_embedder.proj.weight": 4,
        "final_layer.linear.weight": 2,
        "final_layer.linear.bias": 1,
        "t_embedder.mlp.0.weight": 2,
        "blocks.0.mlp.fc1.weight": 2,
    }
    for key, dimensions in needed.items():
        if key not in state:
            found = ", ".join(sorted(state)[:3]) or "nothing"
            raise SetupError(f"{name} is not a SiT: it has no {key} (it begins with {found})")
        if state[key].dim() != dimensions:
            raise SetupError(f"{name} is not a SiT: {key} is {tuple(state[key].shape)}")
    if state["t_embedder.mlp.0.weight"].shape[1] != FREQUENCIES:
        shape = tuple(state["t_embedder.mlp.0.weight"].shape)
        raise SetupError(
            f"{name} is not a SiT: t_embedder.mlp.0.weight is {shape} instead of (D, {FREQUENCIES})"
        )
    for kind, prefix in HEADS.items():
        if any(key.startswith(prefix) for key in state):
            return kind  # type: ignore[return-value]
    _, channels, patch, _ = state["x_embedder.proj.weight"].shape
    rows = len(state["final_layer.linear.weight"])
    if len(state["final_layer.linear.bias"]) != rows:
        raise SetupError(f"{name} is not a SiT: final_layer.linear.bias does not fit its weight")
    return "SiT" if rows == 2 * channels * patch**2 else "sra2"


def from_sit(state: StateDict) -> StateDict:
    """An official SiT in our convention, exactly: v_ours(x, 1 - t, y) = -v_theirs(x, t, y).

    Keep the first C of 2C output channels, negate them, and fold t → 1 - t into the first linear
    of the time embedding: with [cos wt | sin wt] as its input,
    cos w(1-t) = cos w cos wt + sin w sin wt and sin w(1-t) = sin w cos wt - cos w sin wt.
    """
    state = dict(state)
    _, channels, patch, _ = state["x_embedder.proj.weight"].shape
    for key in ("final_layer.linear.weight", "final_layer.linear.bias"):
        rows = state[key].reshape(patch**2, 2 * channels, -1)[:, :channels]
        state[key] = -rows.reshape(patch**2 * channels, *state[key].shape[1:])
    half = FREQUENCIES // 2
    omega = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half).double()
    cos, sin = state["t_embedder.mlp.0.weight"].double().split(half, dim=1)
    folded = [
        cos * omega.cos() + sin * omega.sin(),
        cos * omega.sin() - sin * omega.cos(),
    ]
    state["t_embedder.mlp.0.weight"] = torch.cat(folded, dim=1).float()
    return state


def infer_config(state: Mapping[str, Tensor], num_heads: int | None, name: str) -> SiTConfig:
    """The shape of a network from its tensors; heads from the table of sizes unless given."""
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
    labels = state.get("y_embedder.embedding_table.weight")
    known = {(s["depth"], s["width"]): s["heads"] for s in SIZES.values()}
    heads = num_heads or known.get((depth, width))
    if heads is None:
        raise SetupError(
            f"{name} has depth {depth} and width {width}, which is no size of the table: "
            "give its number of attention heads (num_heads, --num-heads)"
        )
    tokens = state["pos_embed"].shape[1] if "pos_embed" in state else 256
    try:
        return SiTConfig(
            depth=depth,
            width=width,
            heads=heads,
            patch=patch,
            channels=channels,
            latent=math.isqrt(tokens) * patch,
            classes=0 if labels is None else len(labels) - 1,
            qk_norm="blocks.0.attn.q_norm.weight" in state,
            mlp_ratio=len(state["blocks.0.mlp.fc1.weight"]) / width,
        )
    except (KeyError, ValueError) as error:
        raise SetupError(f"{name} is not a SiT that can be built: {error}") from None


def _load_strictly(model: SiT, state: StateDict, name: str) -> None:
    """Load, or say which keys or shapes differ first."""
    wanted = model.state_dict()
    state.setdefault("pos_embed", wanted["pos_embed"])
    faults = [f"no {k}" for k in wanted if k not in state]
    faults += [f"unknown {k} {tuple(state[k].shape)}" for k in state if k not in wanted]
    faults += [
        f"{k} is {tuple(state[k].shape)} instead of {tuple(tensor.shape)}"
        for k, tensor in wanted.items()
        if k in state and state[k].shape != tensor.shape
    ]
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise SetupError(f"{name} does not fit a SiT: {'; '.join(faults[:3])}{more}")
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
