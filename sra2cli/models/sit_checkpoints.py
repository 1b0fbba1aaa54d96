"""Checkpoints of the SiT family: SiT, REPA, SRA and ours, recognised by their keys.

SiT   final_layer.linear has 2C channels per pixel; time reversed, sign flipped
REPA  projectors.*          SRA   ap_head.*          ours  neither

What a file says of its training (`args`) is held against that: whose time it has, its path, what
it predicts, its classes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from sra2cli.config.settings import PathKind
from sra2cli.core.errors import SetupError
from sra2cli.models.layers import FREQUENCIES, sincos_positions
from sra2cli.models.sit import SIZES, SiTConfig
from sra2cli.models.training_args import path_of, trained_as

StateDict = dict[str, Tensor]
Origin = Literal["SiT", "REPA", "SRA", "sra2", "LightningDiT", "REG", "MaskDiT"]
KINDS = {  # what a foreign file can be taken for: the backbone that it then is
    "sit": "sit",
    "lightningdit": "lightningdit",
    "repa": "sit",
}
OF_KIND: dict[str, str] = {  # by who trained it
    "SiT": "sit",
    "REPA": "repa",
    "SRA": "repa",
    "LightningDiT": "lightningdit",
}
HEADS: dict[Origin, str] = {"REPA": "projectors.", "SRA": "ap_head."}  # keys, by who trained them
HIDDEN = "blocks.0.mlp.fc1.weight"
NEEDED = {  # with their number of dimensions: what recognising and converting look at
    "x_embedder.proj.weight": 4,
    "final_layer.linear.weight": 2,
    "final_layer.linear.bias": 1,
    "t_embedder.mlp.0.weight": 2,
}
OPTIONAL = {"pos_embed": 3, "y_embedder.embedding_table.weight": 2}


@dataclass(frozen=True)
class Foreign:
    """A network, its weights as ours, and what is known of it: see checkpoints.

    backbone: its row of models.build.BACKBONES.
    """

    config: SiTConfig
    state: StateDict
    origin: Origin
    path: PathKind
    assumed: str = ""
    unsure: bool = False
    backbone: str = "sit"


def from_state(
    state: StateDict,
    args: Mapping[str, Any],
    name: str,
    *,
    num_heads: int | None = None,
    kind: str | None = None,
) -> Foreign:
    """A foreign state dict, not yet loaded.

    Args:
        args: what the file says of its training. kind: of `KINDS`, where the file does not say.

    Raises:
        SetupError: it is none of the family, contradicts itself, was trained for something else, or
            its heads are not known.
    """
    path = path_of(args, name)
    origin, sure = origin_of(state, args, name, kind)
    state = {k: v for k, v in state.items() if not k.startswith(tuple(HEADS.values()))}
    config = infer_config(state, num_heads, name)
    check_args(args, state, config, name)
    if doubled(state):
        state = first_channels(state)
    if origin == "SiT":
        state = turned_round(state)
    state.setdefault("pos_embed", sincos_positions(config.width, config.latent // config.patch))
    whose = "SiT" if origin == "SiT" else "REPA and SRA"
    assumed = ""
    if not {"path_type", "prediction", "model"} <= args.keys() or not sure:
        assumed = f"taken for a SiT as {whose} trains them: {path} path, velocity; "
        assumed += "DiT files look the same"
    if not sure:
        assumed += (
            ". The file does not say at which end of time its data are: "
            "--kind sit if at t = 1, --kind repa if at t = 0"
        )
    return Foreign(config, state, origin, path, assumed, not sure)


def origin_of(
    state: Mapping[str, Tensor], args: Mapping[str, Any], name: str, kind: str | None
) -> tuple[Origin, bool]:
    """Whose time a network has, by its keys and by what the file says; False: neither tells.

    Raises:
        SetupError: it is not a SiT, or the two contradict each other.
    """
    shaped: Origin = recognise(state, name)
    told: Origin | None = trained_as(args)
    if told and shaped != "sra2" and (told == "SiT") != (shaped == "SiT"):
        raise SetupError(
            f"{name} has the tensors of {shaped}, but its args are {told}'s, whose time runs the "
            "other way: it does not say which it was trained with"
        )
    known = told if shaped == "sra2" else shaped
    if known is not None:
        check_kind(name, known, kind)
        return known, True
    if kind is not None:
        told = "REPA" if kind == "repa" else "SiT"  # LightningDiT without its options is a SiT
    return told or shaped, told is not None


def check_kind(name: str, origin: str, kind: str | None) -> None:
    """SetupError where --kind says otherwise than a file does."""
    own = OF_KIND.get(origin)
    if kind not in (None, own):
        instead = f"give --kind {own}" if own else "leave out --kind"
        raise SetupError(f"{name} holds a {origin}, which is no --kind {kind}: {instead}")


def check_args(
    args: Mapping[str, Any], state: Mapping[str, Tensor], config: SiTConfig, name: str
) -> None:
    """SetupError where a file says one thing of its shape and its tensors another."""
    classes = args.get("num_classes")
    faults = []
    if config.classes and isinstance(classes, int | str) and str(classes) != str(config.classes):
        faults.append(
            f"num_classes {str(classes)[:40]}, but its table of labels has {config.classes + 1} "
            "rows, the last for no label"
        )
    for key, found in (("learn_sigma", doubled(state)), ("qk_norm", config.qk_norm)):
        if isinstance(args.get(key), bool) and args[key] != found:
            faults.append(f"{key} {args[key]}, but its tensors are those of {found}")
    if faults:
        raise SetupError(f"{name} contradicts itself: its args say {'; '.join(faults)}")


def recognise(state: Mapping[str, Tensor], name: str) -> Origin:
    """Whose network this is, by its keys; SetupError for networks that are not a SiT."""
    check_tensors(state, name)
    for kind, prefix in HEADS.items():
        if any(key.startswith(prefix) for key in state):
            return kind
    return "SiT" if doubled(state) else "sra2"


def check_tensors(
    state: Mapping[str, Tensor],
    name: str,
    *,
    what: str = "SiT",
    hidden: str = HIDDEN,
    more: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """SetupError where what recognising and converting look at is missing or odd.

    Args:
        what: the kind of network. hidden: the first weight of the first block's feed-forward layer.
        more: what else is needed, as `NEEDED`.
    """
    needed = {**NEEDED, hidden: 2, **more}
    for key, dimensions in (needed | OPTIONAL).items():
        if key not in state and key in needed:
            found = ", ".join(sorted(state)[:3])[:160] or "nothing"
            raise SetupError(f"{name} is not a {what}: it has no {key} (it begins with {found})")
        if key in state and (state[key].dim() != dimensions or not state[key].numel()):
            raise SetupError(f"{name} is not a {what}: {key} is {tuple(state[key].shape)}")
    time = tuple(state["t_embedder.mlp.0.weight"].shape)
    if time[1] != FREQUENCIES:
        raise SetupError(
            f"{name} is not a {what}: t_embedder.mlp.0.weight is {time} instead of "
            f"(D, {FREQUENCIES})"
        )
    _, channels, patch, other = state["x_embedder.proj.weight"].shape
    rows = len(state["final_layer.linear.weight"])
    if patch != other or rows not in (patch**2 * channels, 2 * patch**2 * channels):
        raise SetupError(
            f"{name} is not a {what}: final_layer.linear.weight has {rows} rows for patches of "
            f"{patch}x{other} and {channels} channels"
        )
    if len(state["final_layer.linear.bias"]) != rows:
        raise SetupError(f"{name} is not a {what}: final_layer.linear.bias does not fit its weight")


def doubled(state: Mapping[str, Tensor]) -> bool:
    """Whether the network gives 2C channels, as SiT's with learn_sigma."""
    _, channels, patch, _ = state["x_embedder.proj.weight"].shape
    return len(state["final_layer.linear.weight"]) == 2 * channels * patch**2


def first_channels(state: StateDict) -> StateDict:
    """The first C of 2C output channels: SiT leaves the others unused."""
    state = dict(state)
    _, channels, patch, _ = state["x_embedder.proj.weight"].shape
    for key in ("final_layer.linear.weight", "final_layer.linear.bias"):
        rows = state[key].reshape(patch**2, 2 * channels, -1)[:, :channels]
        state[key] = rows.reshape(patch**2 * channels, *state[key].shape[1:])
    return state


def turned_round(state: StateDict) -> StateDict:
    """A network of SiT's time in ours, exactly: v_ours(x, 1 - t, y) = -v_theirs(x, t, y).

    Negate the output, and fold t → 1 - t into the first linear of the time embedding: with
    [cos wt | sin wt] as its input,
    cos w(1-t) = cos w cos wt + sin w sin wt and sin w(1-t) = sin w cos wt - cos w sin wt.
    """
    state = dict(state)
    for key in ("final_layer.linear.weight", "final_layer.linear.bias"):
        state[key] = -state[key]
    half = FREQUENCIES // 2
    omega = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half).double()
    cos, sin = state["t_embedder.mlp.0.weight"].double().split(half, dim=1)
    folded = [
        cos * omega.cos() + sin * omega.sin(),
        cos * omega.sin() - sin * omega.cos(),
    ]
    state["t_embedder.mlp.0.weight"] = torch.cat(folded, dim=1).float()
    return state


def infer_config(
    state: Mapping[str, Tensor],
    num_heads: int | None,
    name: str,
    *,
    sizes: Mapping[str, Mapping[str, int]] = SIZES,
    hidden: str = HIDDEN,
) -> SiTConfig:
    """The shape of a network from its tensors; heads from the table of sizes unless given."""
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    depth = depth_of(state, name)
    labels = state.get("y_embedder.embedding_table.weight")
    known = {(s["depth"], s["width"]): s["heads"] for s in sizes.values()}
    heads = known.get((depth, width)) if num_heads is None else num_heads
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
            mlp_ratio=len(state[hidden]) / width,
        )
    except (KeyError, ValueError) as error:
        raise SetupError(f"{name} is not a SiT that can be built: {error}") from None


def depth_of(state: Mapping[str, Tensor], name: str) -> int:
    """The number of blocks; SetupError unless they are counted 0, 1, 2, ... without a gap."""
    numbers = {key.split(".")[1] for key in state if key.startswith("blocks.")}
    missing = next(i for i in range(len(numbers) + 1) if str(i) not in numbers)
    if missing < len(numbers):
        odd = sorted(numbers - {str(i) for i in range(len(numbers))})[0]
        raise SetupError(f"{name} is not a SiT: it has blocks.{odd[:40]}, but no blocks.{missing}")
    return missing
