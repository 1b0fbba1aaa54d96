"""Checkpoints of the SiT family: SiT, REPA, SRA and ours, recognised by their keys.

SiT   final_layer.linear has 2C channels per pixel; time reversed, sign flipped
REPA  projectors.*          SRA   ap_head.*          ours  neither
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sra2cli.core.errors import SetupError
from sra2cli.models.layers import FREQUENCIES
from sra2cli.models.sit import SIZES, SiT, SiTConfig

StateDict = dict[str, Tensor]
Origin = Literal["SiT", "REPA", "SRA", "sra2"]
HEADS = {"REPA": "projectors.", "SRA": "ap_head."}  # keys of heads, by who trained them
FOREIGN = {  # keys of networks that are not a SiT
    "mlp.w12": "LightningDiT (SwiGLU, rotary positions)",
    "cls_projectors2": "REG (a class token)",
    "wg_norm": "REG (a class token)",
}


def from_state(state: StateDict, num_heads: int | None, name: str) -> tuple[SiT, StateDict, Origin]:
    """The network of a foreign state dict, not yet loaded, its weights as ours, and whose it was.

    Raises:
        SetupError: it is none of the family, or its heads are not known.
    """
    origin = recognise(state, name)
    state = {k: v for k, v in state.items() if not k.startswith(tuple(HEADS.values()))}
    if origin == "SiT":
        state = from_sit(state)
    model = SiT(infer_config(state, num_heads, name))
    state.setdefault("pos_embed", model.pos_embed)
    return model, state, origin


def refuse_dit(source: Path, args: Any, kind: str | None) -> None:
    """DiT's files have SiT's keys and shapes to the last: nothing in the tensors tells them apart.

    Args:
        args: what the file says of its training, if it does. kind: as the user gave it.

    Raises:
        SetupError: the base name, or the record, says that it is a DiT.
    """
    model = args.get("model") if isinstance(args, Mapping) else getattr(args, "model", None)
    if isinstance(model, str) and re.match(r"DiT-", model):
        raise SetupError(f"{source} was trained as a {model} (its args say so): not a SiT")
    if kind != "sit" and re.match(r"(fast-)?DiT[-_]", source.name):
        raise SetupError(
            f"{source} is a DiT by its name, which predicts noise: sra2 does not open it. "
            "If it is a SiT after all: --kind sit"
        )


def recognise(state: Mapping[str, Tensor], name: str) -> Origin:
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
