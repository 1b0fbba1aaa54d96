"""Checkpoints of other families, recognised by keys that SiT does not have.

LightningDiT  mlp.w12 (SwiGLU), feat_rope.*; time reversed, sign flipped, as in SiT's own
REG           cls_projectors2.*, wg_norm.*, final_layer.linear_cls.*; REPA's time and projectors
MaskDiT       decoder_blocks.*; EDM's noise levels
MMDiT         joint_blocks.*, context_embedder.*; REPA's, on captions
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from sra2cli.core.errors import SetupError
from sra2cli.models import lightningdit, maskdit, sit
from sra2cli.models.layers import sincos_positions
from sra2cli.models.lightningdit import LightningDiTConfig
from sra2cli.models.mmdit import MMDiTConfig
from sra2cli.models.reg import RegConfig
from sra2cli.models.sit_checkpoints import (
    Foreign,
    StateDict,
    check_args,
    check_kind,
    check_tensors,
    depth_of,
    infer_config,
    turned_round,
)
from sra2cli.models.training_args import path_of

HEAD = ("final_layer.linear_cls.weight", "final_layer.linear_cls.bias")  # of REG
GATE = "blocks.0.mlp.w12.weight"
JOINT = "joint_blocks.0.x_block.mlp.fc1.weight"
TEXT = "context_embedder.weight"  # of an MMDiT
Opener = Callable[[StateDict, Mapping[str, Any], str, int | None], Foreign]


def from_state(
    state: StateDict,
    args: Mapping[str, Any],
    name: str,
    *,
    num_heads: int | None = None,
    kind: str | None = None,
) -> Foreign | None:
    """A state dict of one of these families, not yet loaded; None if it is of none.

    Args:
        args: what the file says of its training. kind: what it is to be taken for.

    Raises:
        SetupError: it is another kind, contradicts itself, was trained for something else, or its
            heads are not known.
    """
    opener = next((open_ for mark, open_ in MARKS.items() if any(mark in k for k in state)), None)
    if opener is None:
        return None
    its = opener(state, args, name, num_heads)
    check_kind(name, its.origin, kind)
    return its


def lightning(
    state: StateDict, args: Mapping[str, Any], name: str, num_heads: int | None
) -> Foreign:
    """LightningDiT, in our time; its tables of angles are not weights."""
    state = {k: v for k, v in state.items() if not k.startswith("feat_rope.")}
    check_tensors(state, name, what="LightningDiT", hidden=GATE)
    found = infer_config(state, num_heads, name, sizes=lightningdit.SIZES, hidden=GATE)
    config = LightningDiTConfig(**{**asdict(found), "mlp_ratio": 4.0})
    if 2 * config.hidden != len(state[GATE]):  # h = int(2/3 * ratio * D)
        ratio = (len(state[GATE]) / 2 + 0.5) * 1.5 / found.width
        config = LightningDiTConfig(**{**asdict(found), "mlp_ratio": ratio})
    check_args(args, state, config, name)
    return Foreign(
        config,
        turned_round(_placed(state, config)),
        "LightningDiT",
        path_of(_transport(args), name),
        backbone="lightningdit",
    )


def reg(state: StateDict, args: Mapping[str, Any], name: str, num_heads: int | None) -> Foreign:
    """REG, without its projector."""
    state = {k: v for k, v in state.items() if not k.startswith("projectors.")}
    check_tensors(state, name, what="REG")
    found = infer_config(state, num_heads, name)
    for key in HEAD:
        if key not in state:
            raise SetupError(f"{name} is not a whole REG: no {key}, its class head")
    config = RegConfig(**asdict(found), class_width=len(state[HEAD[0]]))
    check_args(args, state, config, name)
    return Foreign(config, state, "REG", path_of(args, name), backbone="reg")


def masked(state: StateDict, args: Mapping[str, Any], name: str, num_heads: int | None) -> Foreign:
    """MaskDiT, without its mask token."""
    state = maskdit.own_weights(state)
    check_tensors(state, name, what="MaskDiT")
    found = infer_config(state, num_heads, name)
    config = maskdit.with_decoder(found, state, num_heads)
    side = config.shape.side
    state.setdefault("decoder_pos_embed", sincos_positions(config.decoder_width, side))
    return Foreign(config, _placed(state, config), "MaskDiT", "linear", backbone="maskdit")


def captioned(
    state: StateDict, args: Mapping[str, Any], name: str, num_heads: int | None
) -> Foreign:
    """REPA's MMDiT, without its projector; it does not hold the empty caption.

    Its heads are of 32, and as many as its blocks, unless `num_heads` says otherwise.
    """
    state = {k: v for k, v in state.items() if not k.startswith("projectors.")}
    check_tensors(state, name, what="MMDiT", hidden=JOINT, more={TEXT: 2})
    blocks = {k.replace("joint_blocks.", "blocks.", 1): v for k, v in state.items()}
    hidden = JOINT.replace("joint_blocks.", "blocks.", 1)
    width, depth = len(state["x_embedder.proj.weight"]), depth_of(blocks, name)
    heads = num_heads or (depth if width == 32 * depth else None)
    found = infer_config(blocks, heads, name, hidden=hidden)
    text_width, encoder = state[TEXT].shape[1], "openai/clip-vit-large-patch14"
    config = MMDiTConfig(
        **asdict(found), text_width=text_width, text_tokens=0, text_encoder=encoder
    )
    assumed = f"taken for a network that was told captions by {encoder}"
    return Foreign(
        config, _placed(state, config), "REPA", path_of(args, name), assumed, backbone="mmdit"
    )


MARKS: dict[str, Opener] = {  # by a part of a key
    "joint_blocks.": captioned,
    "context_embedder.": captioned,
    "mlp.w12.": lightning,
    "feat_rope.": lightning,
    "cls_projectors2.": reg,
    "wg_norm.": reg,
    "final_layer.linear_cls.": reg,
    "decoder_blocks.": masked,
}


def _placed(state: StateDict, config: sit.SiTConfig) -> StateDict:
    """With the table of positions, which some files leave out."""
    table = sincos_positions(config.width, config.shape.side)
    return {"pos_embed": table, **state}


def _transport(args: Mapping[str, Any]) -> Mapping[str, Any]:
    """LightningDiT keeps path and prediction one level down."""
    inside = args.get("transport")
    return {**args, **inside} if isinstance(inside, Mapping) else args
