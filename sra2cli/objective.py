"""The module that is wrapped and trained: SiT with its alignment heads → named losses."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sra2cli import align, clock, path
from sra2cli.align.inputs import TeacherTokens
from sra2cli.errors import SetupError
from sra2cli.settings import Recipe
from sra2cli.sit import SiT, SiTConfig, named_size


@dataclass(frozen=True)
class Batch:
    """One training batch, on the device.

    z, mean: (B, C, H, W) scaled latents: the posterior draw to be noised, and the posterior mean.
    noise: (B, C, H, W). t, teacher_uniform: (B,) float32.
    y: (B,) labels with the null class where dropped; None for an unconditional model.
    features: (B, T, F) of an image encoder; only REPA needs them.
    """

    z: Tensor
    mean: Tensor
    noise: Tensor
    t: Tensor
    y: Tensor | None
    teacher_uniform: Tensor
    features: Tensor | None = None


class Objective(nn.Module):
    """L = L_denoise + sum of weight * L_align (SRA 2 eq. 8).

    Args:
        recipe: shape of the network, path, methods.
        feature_width: of the encoder features; needed by REPA alone.

    Raises:
        SetupError: where recipe and network do not fit.
    """

    def __init__(self, recipe: Recipe, *, feature_width: int | None = None):
        super().__init__()
        self.kind = recipe.path.kind
        with _Seeded(recipe.seed, 0):
            self.sit = SiT(sit_config(recipe))
        with _Seeded(recipe.seed, 1):
            self.heads = build_heads(recipe, feature_width=feature_width)

    def methods(self) -> dict[str, align.Alignment]:
        """The alignment methods, by name."""
        return dict(self.heads.items())  # type: ignore[arg-type]

    @property
    def needs_teacher(self) -> bool:
        return any(method.needs_teacher for method in self.methods().values())

    @property
    def needs_features(self) -> bool:
        return any(method.needs_features for method in self.methods().values())

    def forward(
        self, batch: Batch, epoch: int = 0, teacher: TeacherTokens | None = None
    ) -> dict[str, Tensor]:
        """Losses of a batch, float32 scalars: "loss" (the total), "denoise", and one per method.

        Args:
            epoch: of the data; SRA's weight depends on it.
            teacher: tokens of the EMA; only SRA needs it.
        """
        x_t, v = path.interpolate(batch.z, batch.noise, batch.t, self.kind)
        # A method of weight 0 is switched off: its head is neither run nor trained.
        active = {n: m for n, m in self.methods().items() if m.weight(epoch) != 0}
        taps = {method.depth for method in active.values()}
        v_model, tokens = self.sit(x_t, batch.t, batch.y, taps=taps)
        losses = {"denoise": (v_model.float() - v).square().mean()}
        total = losses["denoise"]
        inputs = align.AlignInputs(
            z=batch.z,
            mean=batch.mean,
            t=batch.t,
            y=batch.y,
            teacher_uniform=batch.teacher_uniform,
            noised=lambda t: path.interpolate(batch.z, batch.noise, t, self.kind)[0],
            features=batch.features,
            teacher=teacher,
        )
        for name, method in active.items():
            losses[name] = method(tokens[method.depth], inputs).mean()
            total = total + method.weight(epoch) * losses[name]
        return {"loss": total, **losses}


def sit_config(recipe: Recipe) -> SiTConfig:
    """The network a recipe asks for; raises SetupError where it cannot be built."""
    model, data = recipe.model, recipe.data
    try:
        if model.size == "custom":
            shape = {k: getattr(model, k) for k in ("depth", "width", "heads", "patch")}
        else:
            shape = named_size(model.size)
        return SiTConfig(
            **shape,
            qk_norm=model.qk_norm,
            channels=data.channels,
            latent=data.latent,
            classes=data.classes,
        )
    except ValueError as error:
        raise SetupError(f"model: {error}") from None


def build_heads(recipe: Recipe, *, feature_width: int | None) -> nn.ModuleDict:
    """The alignment methods of a recipe; raises SetupError where they do not fit its network."""
    config = sit_config(recipe)
    shape = align.Shape(config.width, config.depth, config.patch, config.channels)
    try:
        return align.build(recipe.align, shape, feature_width=feature_width)
    except ValueError as error:
        raise SetupError(str(error)) from None


class _Seeded:
    """Initial weights from (seed, index) alone, leaving torch's own generator as it was."""

    def __init__(self, seed: int, index: int):
        self.seed = clock.torch_seed(seed, index)

    def __enter__(self) -> None:
        self.state = torch.get_rng_state()
        torch.default_generator.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self.state)
