"""The settings of a run and their defaults, which are the papers'."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Objective = Literal["smooth-l1", "cosine", "l1", "l2"]
Solver = Literal["em", "euler", "heun"]


@dataclass(frozen=True)
class Data:
    """What the latent store must hold; checked when it is opened."""

    classes: int = 1000  # 0: no labels, an unconditional model
    channels: int = 4
    latent: int = 32  # side of the latent: 32 for 256x256 with an 8x VAE
    vae: str | None = None  # fingerprint of the first stage; null: any
    mirror: bool = False  # use the store's mirrored moments half of the time (SiT flips, REPA not)


@dataclass(frozen=True)
class Model:
    """A size of the table (S, B, L, XL with /1, /2, /4, /8), or "custom" with the numbers."""

    size: str = "B/2"
    depth: int | None = None
    width: int | None = None
    heads: int | None = None
    patch: int | None = None
    qk_norm: bool = False


@dataclass(frozen=True)
class PathSettings:
    kind: Literal["linear", "cosine"] = "linear"
    times: Literal["uniform", "lognormal"] = "uniform"
    times_mean: float = 0.0
    times_std: float = 1.0


@dataclass(frozen=True)
class SRA2:
    """SRA 2 (arXiv 2601.17830): align tokens with the VAE's own feature."""

    depth: int = 2  # block whose tokens are aligned, 1-based
    weight: float = 1.0  # lambda
    window: tuple[float, float] = (0.0, 1.0)  # no alignment loss for t outside
    objective: Objective = "smooth-l1"
    layers: int = 5  # linears of the head
    target: Literal["sample", "mean"] = "sample"  # the latent noised in this step, or its mean
    reduction: Literal["mean", "sum"] = "mean"


@dataclass(frozen=True)
class REPA:
    """REPA (arXiv 2410.06940): align tokens with a frozen image encoder."""

    depth: int = 8
    weight: float = 0.5
    window: tuple[float, float] = (0.0, 1.0)
    objective: Objective = "cosine"
    layers: int = 3
    hidden: int = 2048
    encoder: str = "facebook/dinov2-base"  # name or folder; its features may lie in the store


@dataclass(frozen=True)
class SRA:
    """SRA (arXiv 2505.02831): align tokens with later tokens of the EMA at a cleaner time."""

    depth: int = 8
    teacher_depth: int = 20
    weight: float = 0.2
    window: tuple[float, float] = (0.0, 1.0)
    objective: Literal["smooth-l1", "cosine", "cosine-over-tokens", "l1", "l2"] = "smooth-l1"
    time_shift: float = 0.2  # teacher time = clamp(t - time_shift * u, 0, 1)
    decay_after: int | None = 149  # weight * 0.1^((epoch - 149) / 1000) from there; null: constant


@dataclass(frozen=True)
class Align:
    """The alignment methods of a run, by their presence: none, one, or several."""

    sra2: SRA2 | None = None
    repa: REPA | None = None
    sra: SRA | None = None


@dataclass(frozen=True)
class Train:
    steps: int = 400_000
    batch: int = 256  # global: processes x micro-batch x accumulation
    micro_batch: int | None = None  # samples of a process at a time; null: all of its share
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    label_dropout: float = 0.1
    ema: float = 0.9999
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where it is fast
    tf32: bool = False  # lets CUDA multiply fp32 matrices with 10 bits
    compile: bool | None = None  # torch.compile of the blocks; null: on CUDA
    checkpointing: bool = False  # recompute activations: a third more time, far less memory


@dataclass(frozen=True)
class Log:
    """How a run is watched and kept; may change on resume."""

    every: int = 100  # steps between rows of metrics.jsonl
    save_every: int = 10_000  # steps between checkpoints
    keep_every: int = 50_000  # checkpoints at multiples of this are never deleted
    keep: int = 2  # newest checkpoints kept besides those
    preview_every: int = 10_000  # steps between grids drawn from the EMA; 0: none
    eval_every: int = 0  # steps between evaluations of the EMA; 0: none
    eval_num: int = 5_000  # images drawn for each, with balanced labels and Euler's method
    eval_steps: int = 50  # of the solver
    eval_metrics: str = "fid"  # names with commas, as `sra2 eval` takes them
    eval_ref: str | None = None  # what they are compared with, as `sra2 eval --ref`
    tensorboard: bool = True
    wandb: str | None = None  # project of Weights & Biases


@dataclass(frozen=True)
class Recipe:
    name: str = "custom"
    seed: int = 0
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    path: PathSettings = field(default_factory=PathSettings)
    align: Align = field(default_factory=Align)
    train: Train = field(default_factory=Train)
    log: Log = field(default_factory=Log)

    def to_dict(self) -> dict[str, Any]:
        return plain(asdict(self))

    @property
    def method(self) -> str:
        """Name of the method: none, sra2, repa, sra or a combination such as repa+sra2."""
        names = [n for n in ("repa", "sra", "sra2") if getattr(self.align, n) is not None]
        return "+".join(names) or "none"


def plain(value: Any) -> Any:
    """Tuples as lists, so that YAML and JSON give back what was written."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, tuple) else value
