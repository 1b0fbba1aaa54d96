"""Autoencoders in the keys of latent diffusion (arXiv 2112.10752), as VA-VAE (arXiv 2501.01423) is
published: a file whose weights diffusers.AutoencoderKL holds exactly, under other names.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

NAMES = (  # (pattern, replacement), applied in turn
    (r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
    (r"^encoder\.down\.(\d+)\.attn\.", r"encoder.down_blocks.\1.attentions."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"^decoder\.up\.(\d+)\.block\.", r"decoder.up_blocks.\1.resnets."),
    (r"^decoder\.up\.(\d+)\.attn\.", r"decoder.up_blocks.\1.attentions."),
    (r"^decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
)
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
WRAPPERS = ("module.", "first_stage_model.", "vae.")


def own_weights(content: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """The autoencoder's weights in a checkpoint, under their own names, in float32; None if it is
    of no such autoencoder.

    What else was trained beside it (loss.*, linear_proj.*, foundation_model.*) is left out.
    """
    inside = content.get("state_dict", content)
    if not isinstance(inside, Mapping):
        return None
    found = {}
    for key, value in inside.items():
        name = str(key)
        for wrapper in WRAPPERS:
            name = name.removeprefix(wrapper)
        if name.startswith(PARTS) and isinstance(value, Tensor):
            found[name] = value.float()
    return found if "encoder.down.0.block.0.conv1.weight" in found else None


def levels(keys: Collection[str]) -> int:
    """Number of resolutions of the encoder."""
    return 1 + max(int(m[1]) for k in keys if (m := re.match(r"encoder\.down\.(\d+)\.", k)))


def config_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config of the diffusers.AutoencoderKL that holds these weights; all but the groups of
    its norms (32, as everywhere) follows from their shapes.

    Raises:
        KeyError: a weight that says a size is missing.
    """
    count = levels(state)

    def attends(level: int, where: str) -> bool:
        return f"{where}.{level}.attn.0.q.weight" in state

    down = [
        "AttnDownEncoderBlock2D" if attends(i, "encoder.down") else "DownEncoderBlock2D"
        for i in range(count)
    ]
    up = [
        "AttnUpDecoderBlock2D" if attends(i, "decoder.up") else "UpDecoderBlock2D"
        for i in reversed(range(count))
    ]
    widths = [len(state[f"encoder.down.{i}.block.0.conv1.weight"]) for i in range(count)]
    blocks = {int(m[1]) for k in state if (m := re.match(r"encoder\.down\.0\.block\.(\d+)\.", k))}
    return {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": len(state["decoder.conv_out.weight"]),
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "down_block_types": down,
        "up_block_types": up,
        "block_out_channels": widths,
        "layers_per_block": len(blocks),
        "norm_num_groups": 32,
        "act_fn": "silu",
        "use_quant_conv": "quant_conv.weight" in state,
        "use_post_quant_conv": "post_quant_conv.weight" in state,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in state,
    }


def diffusers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as diffusers.AutoencoderKL names them."""
    last = levels(state) - 1
    return dict(_renamed(key, value, last) for key, value in state.items())


def _renamed(key: str, value: Tensor, last: int) -> tuple[str, Tensor]:
    key = re.sub(r"^decoder\.up\.(\d+)", lambda m: f"decoder.up.{last - int(m[1])}", key)
    for pattern, name in NAMES:
        key = re.sub(pattern, name, key)
    if ".attentions." in key:
        head, part, kind = key.rsplit(".", 2)
        if part != "norm" and kind == "weight":
            value = value.flatten(1)  # a 1x1 convolution is a linear layer
        key = f"{head}.{ATTENTION[part]}.{kind}"
    return key, value
