"""The settings of a run and their defaults, which are the papers'."""

from dataclasses import asdict, field
from typing import Any, Literal, get_args

from sra2cli.config.checks import (
    Count,
    Flag,
    Fraction,
    Fractions,
    Name,
    Natural,
    NotNegative,
    Number,
    Positive,
    Seed,
    settings,
)
from sra2cli.config.methods import MethodSettings

Solver = Literal["em", "euler", "heun", "edm"]
PathKind = Literal["linear", "cosine"]
Precision = Literal["fp32", "bf16", "fp16"]
SOLVERS = get_args(Solver)


@settings
class Data:
    """What the latent store must hold; checked when it is opened. null: whatever it holds."""

    classes: Natural | None = None  # 0: no labels, an unconditional model
    channels: Count | None = None
    latent: Count | None = None  # side of the latent: 32 for 256x256 with an 8x VAE
    vae: str | None = None  # fingerprint of the first stage; null: any
    text_encoder: str | None = None  # what made the features of captions, of kind mmdit:
    text_tokens: Count | None = None  # so many of each,
    text_width: Count | None = None  # so wide
    mirror: Flag = False  # use the store's mirrored moments half of the time (SiT flips, REPA not)


@settings
class Model:
    """A backbone, and a size of its table (S, B, L, XL with /1, /2, /4, /8), or "custom" with
    the numbers."""

    kind: str = "sit"
    size: str = "B/2"
    depth: Count | None = None
    width: Count | None = None
    heads: Count | None = None
    patch: Count | None = None
    qk_norm: Flag = False
    class_width: Count | None = None  # of kind reg: the encoder's class feature; null: 768

    def __post_init__(self) -> None:
        custom = {k: getattr(self, k) for k in ("depth", "width", "heads", "patch")}
        missing = [k for k, v in custom.items() if v is None]
        given = [k for k, v in custom.items() if v is not None]
        if self.size == "custom" and missing:
            raise ValueError(f"'size' is custom: give 'model.{missing[0]}' too")
        if self.size != "custom" and given:
            raise ValueError(
                f"'{given[0]}' is fixed by size {self.size}; for your own numbers: "
                "model.size=custom"
            )


@settings
class PathSettings:
    kind: PathKind = "linear"
    times: Literal["uniform", "lognormal"] = "uniform"
    times_mean: Number = 0.0
    times_std: Number = 1.0


@settings
class Train:
    steps: Count = 400_000
    batch: Count = 256  # global: processes x micro-batch x accumulation
    micro_batch: Count | None = None  # samples of a process at a time, at most; null: its share
    lr: Positive = 1e-4
    lr_warmup: Natural = 0  # steps over which the learning rate rises from 0
    lr_decay: Literal["constant", "cosine"] = "constant"  # cosine: to 0 at the last step
    betas: Fractions = (0.9, 0.999)
    weight_decay: NotNegative = 0.0
    grad_clip: Positive | None = 1.0  # null: none
    cosine_loss: NotNegative = 0.0  # weight of 1 - cosine of the velocities (LightningDiT: 1)
    contrastive: Fraction = 0.0  # weight of -||v - v of another sample||^2 (its paper: 0.05)
    group: Count = 16  # samples, one after the other in the global batch, that are compared:
    # by train.contrastive, which takes the next one of the group, and by align.dispersive
    label_dropout: Fraction = 0.1
    ema: Fraction = 0.9999
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where it is fast
    tf32: Flag = False  # lets CUDA multiply fp32 matrices with 10 bits
    compile: Flag | None = None  # torch.compile of the blocks; null: on CUDA
    checkpointing: Flag = False  # recompute activations: a third more time, far less memory


@settings
class Log:
    """How a run is watched and kept; may change on resume."""

    every: Count = 100  # steps between rows of metrics.jsonl
    save_every: Count = 10_000  # steps between checkpoints
    keep_every: Count = 50_000  # of checkpoints at multiples of this the EMA is kept for good
    keep: Count = 2  # newest checkpoints kept whole, to resume from
    preview_every: Natural = 10_000  # steps between grids drawn from the EMA; 0: none
    eval_every: Natural = 0  # steps between evaluations of the EMA; 0: none
    eval_num: Count = 5_000  # images drawn for each, with balanced labels and Euler's method
    eval_steps: Count = 50  # of the solver
    eval_metrics: str = "fid"  # names with commas, as `sra2 eval` takes them
    eval_ref: str | None = None  # what they are compared with, as `sra2 eval --ref`
    tensorboard: Flag = True
    wandb: str | None = None  # project of Weights & Biases


@settings
class Recipe:
    name: Name = "custom"
    seed: Seed = 0
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    path: PathSettings = field(default_factory=PathSettings)
    align: dict[str, MethodSettings] = field(default_factory=dict)  # by name; none, one, several
    train: Train = field(default_factory=Train)
    log: Log = field(default_factory=Log)

    def to_dict(self) -> dict[str, Any]:
        return plain(asdict(self))

    @property
    def method(self) -> str:
        """Name of the method: none, sra2, repa, sra or a combination such as repa+sra2."""
        return "+".join(self.align) or "none"

    def needs(self, what: str, step: int, epoch: int) -> bool:
        """Whether a method that is on at a step needs the "teacher" or the "features"."""
        return any(what in s.needs and s.factor(step, epoch) for s in self.align.values())

    @property
    def frozen(self) -> str | None:
        """The network whose tokens some method needs, held beside the EMA; "": it is not named."""
        needing = (s for s in self.align.values() if s.weight and "frozen" in s.needs)
        return next((str(getattr(s, "teacher") or "") for s in needing), None)  # noqa: B009

    @property
    def grouped(self) -> bool:
        """Whether samples of a group (train.group) are compared with each other."""
        methods = any("group" in s.needs and s.weight for s in self.align.values())
        return methods or self.train.contrastive > 0

    @property
    def encoder(self) -> str | None:
        """The image encoder whose features some method needs; None if none does."""
        needing = (s for s in self.align.values() if s.weight and "features" in s.needs)
        return next((str(getattr(s, "encoder")) for s in needing), None)  # noqa: B009


def plain(value: Any) -> Any:
    """Tuples as lists, so that YAML and JSON give back what was written."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, tuple) else value
