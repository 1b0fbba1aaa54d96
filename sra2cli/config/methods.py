"""Alignment methods: their settings, and the one table that names them.

A new method is a file in `align/`, its settings here, and a row of `METHODS`: its name in recipes
and results, what recipes check, what is ablated, counted and listed follow from the row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from sra2cli.config.checks import (
    Count,
    Natural,
    NotNegative,
    Number,
    Positive,
    Until,
    Window,
    settings,
)

Objective = Literal["smooth-l1", "cosine", "l1", "l2"]


@settings
class MethodSettings:
    """What every method has; the blocks it aligns are settings whose names end in depth or depths.

    Class attributes: needs says what a method asks of a batch beside latents: "teacher" (tokens of
    the EMA), "frozen" (those of the network that its setting `teacher` names), "features" (of the
    image encoder that its setting `encoder` names), "group" (it compares samples of train.group);
    or of the network: "class token".
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    weight: NotNegative = 1.0  # lambda; 0: the method is not built
    window: Window = (0.0, 1.0)  # no alignment loss for t outside
    until: Until = None  # step (100000) or epoch (80ep) from which on the method is switched off

    @property
    def reads(self) -> Literal["z", "v"] | None:
        """What its head reads off its block, in the latent's units: the clean latent or the
        velocity, with which sampling may be guided; None: neither."""
        return None

    def decay(self, epoch: int) -> float:
        """What multiplies the weight at an epoch of the data."""
        return 1.0

    def factor(self, step: int, epoch: int) -> float:
        """What multiplies the loss at a step; once 0 by `until`, always 0."""
        if self.until is not None:
            text = str(self.until)
            if (epoch if text.endswith("ep") else step) >= int(text.removesuffix("ep")):
                return 0.0
        return self.weight * self.decay(epoch)


@settings
class SRA2(MethodSettings):
    """SRA 2 (arXiv 2601.17830): align tokens with the VAE's own feature."""

    depth: Count = 2  # block whose tokens are aligned, 1-based
    objective: Objective = "smooth-l1"
    layers: Count = 5  # linears of the head
    final: Literal["linear", "norm", "adaln"] = "linear"  # what the last of them is, or follows
    target: Literal["sample", "mean"] = "sample"  # the latent noised in this step, or its mean
    target_norm: Literal["none", "sample"] = "none"  # sample: z-score of target and prediction
    reduction: Literal["mean", "sum"] = "mean"

    @property
    def reads(self) -> Literal["z", "v"] | None:
        """A cosine and a z-score leave the scale open."""
        return "z" if self.objective != "cosine" and self.target_norm == "none" else None


@settings
class REPA(MethodSettings):
    """REPA (arXiv 2410.06940): align tokens with a frozen image encoder."""

    needs = frozenset({"features"})

    depth: Count = 8
    weight: NotNegative = 0.5
    objective: Objective = "cosine"
    layers: Count = 3
    hidden: Count = 2048
    encoder: str = "facebook/dinov2-base"  # name or folder; its features may lie in the store
    projector: Literal["mlp", "conv"] = "mlp"  # conv: one of 3x3, in place of the linears (iREPA)
    spatial_norm: NotNegative | None = None  # a: target less a x its mean over tokens, over its
    # deviation over tokens (iREPA, arXiv 2512.10794); null: the target as it is

    def __post_init__(self) -> None:
        if self.projector == "conv" and (self.layers, self.hidden) != (3, 2048):
            raise ValueError("'layers' and 'hidden' are of projector mlp: conv is one convolution")


@settings
class REG(REPA):
    """REG (arXiv 2507.01467): REPA over class token and patches, for a network (model.kind: reg)
    that is given the noised class token and predicts its velocity."""

    needs = frozenset({"features", "class token"})

    class_weight: NotNegative = 0.03  # of the class token's velocity loss; it outlasts `until`

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, own in (("projector", "mlp"), ("spatial_norm", None)):
            if getattr(self, key) != own:
                raise ValueError(f"'{key}' is for align.repa: a class token is not in the square")


@settings
class SRA(MethodSettings):
    """SRA (arXiv 2505.02831): align tokens with later tokens of the EMA at a cleaner time."""

    needs = frozenset({"teacher"})

    depth: Count = 8
    teacher_depth: Count = 20
    weight: NotNegative = 0.2
    objective: Literal["smooth-l1", "cosine", "cosine-over-tokens", "l1", "l2"] = "smooth-l1"
    time_shift: Number = 0.2  # teacher time = clamp(t - time_shift * u, 0, 1)
    decay_after: Natural | None = 149  # epoch from which on the weight falls; null: constant
    decay_epochs: Count = 1000  # over so many epochs tenfold

    def decay(self, epoch: int) -> float:
        """0.1^((epoch - after) / epochs): 2 * 0.1^(1 + ...) of SRA's runs is 0.2 times it."""
        if self.decay_after is None or epoch <= self.decay_after:
            return 1.0
        return float(0.1 ** ((epoch - self.decay_after) / self.decay_epochs))


@settings
class LayerSync(MethodSettings):
    """LayerSync (arXiv 2510.12581): align tokens with the network's own of a later block."""

    depth: Count = 8
    target_depth: Count = 16  # no gradient reaches it
    weight: NotNegative = 0.2

    def __post_init__(self) -> None:
        if self.depth == self.target_depth:
            raise ValueError(f"'target_depth' is another block than depth, {self.depth}")


@settings
class SelfTranscendence(MethodSettings):
    """Self-Transcendence (arXiv 2601.07773), its second stage: align tokens with a frozen network's
    of a later block, guided. Its first stage is nearly SRA2."""

    needs = frozenset({"frozen"})

    teacher: str | None = None  # run or checkpoint of a network of the same shape
    depth: Count = 6
    teacher_depth: Count = 8
    guidance: NotNegative = 30.0
    weight: NotNegative = 0.5
    window: Window = (0.4, 0.7)
    layers: Count = 3
    hidden: Count = 2048


@settings
class Internal(MethodSettings):
    """Internal Guidance (arXiv 2512.24176), its training: a velocity read off a middle block."""

    depth: Count = 8
    weight: NotNegative = 0.5

    @property
    def reads(self) -> Literal["z", "v"] | None:
        return "v"


@settings
class Dispersive(MethodSettings):
    """Dispersive loss (arXiv 2506.09027): tokens of different samples are driven apart."""

    needs = frozenset({"group"})

    depth: Count = 7
    weight: NotNegative = 0.5
    temperature: Positive = 0.5


@dataclass(frozen=True)
class Method:
    """A row. title: in tables.

    module: "module:class" of what trains it (torch is imported when it is built), or the class.
    blocks: settings of its paper by size, for `sra2 cost`; sizes that are not there: the defaults.
    """

    settings: type[MethodSettings]
    module: Any
    title: str
    blocks: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def _blocks(small: Mapping[str, int], large: Mapping[str, int]) -> dict[str, Mapping[str, int]]:
    """Of S and B, and of L and XL."""
    return {"S": small, "B": small, "L": large, "XL": large}


METHODS: dict[str, Method] = {  # by their names in a recipe's `align`
    "repa": Method(
        REPA,
        "sra2cli.align.repa:RepaAlignment",
        "REPA",
        _blocks({"depth": 4}, {"depth": 8}),
    ),
    "reg": Method(
        REG,
        "sra2cli.align.reg:RegAlignment",
        "REG",
        _blocks({"depth": 4}, {"depth": 8}),
    ),
    "sra": Method(
        SRA,
        "sra2cli.align.sra:SraAlignment",
        "SRA",
        {
            "S": {"depth": 3, "teacher_depth": 8},  # ours
            "B": {"depth": 3, "teacher_depth": 8},
            "L": {"depth": 6, "teacher_depth": 16},
            "XL": {"depth": 8, "teacher_depth": 20},
        },
    ),
    "sra2": Method(
        SRA2,
        "sra2cli.align.sra2:Sra2Alignment",
        "SRA 2",
        _blocks({"depth": 2}, {"depth": 8}),
    ),
    "layersync": Method(
        LayerSync,
        "sra2cli.align.layersync:LayerSyncAlignment",
        "LayerSync",
        _blocks(
            {"depth": 4, "target_depth": 8}, {"depth": 8, "target_depth": 16}
        ),  # XL's are theirs
    ),
    "self-transcendence": Method(
        SelfTranscendence,
        "sra2cli.align.self_transcendence:SelfTranscendenceAlignment",
        "Self-Transcendence",
        _blocks({"depth": 3, "teacher_depth": 4}, {"depth": 6, "teacher_depth": 8}),  # XL's: theirs
    ),
    "internal": Method(
        Internal,
        "sra2cli.align.internal:InternalAlignment",
        "Internal Guidance",
        _blocks({"depth": 4}, {"depth": 8}),  # XL's is theirs
    ),
    "dispersive": Method(
        Dispersive,
        "sra2cli.align.dispersive:DispersiveAlignment",
        "Dispersive loss",
        {"S": {"depth": 3}, "B": {"depth": 3}, "L": {"depth": 6}, "XL": {"depth": 7}},
    ),
}
