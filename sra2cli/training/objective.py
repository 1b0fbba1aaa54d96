"""The module that is wrapped and trained: a network with its alignment heads → named losses."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sra2cli import align
from sra2cli.config.methods import REG
from sra2cli.config.settings import Recipe
from sra2cli.core import clock
from sra2cli.core.errors import SetupError
from sra2cli.data.batches import Batch
from sra2cli.diffusion import path
from sra2cli.models.build import build, shape_of


class Objective(nn.Module):
    """L = L_denoise + sum of factor * L_align (SRA 2 eq. 8).

    With a cosine term (train.cosine_loss) L_denoise is joined by the weighted mean over positions
    of 1 - cosine of the velocities, over channels (LightningDiT, arXiv 2501.01423). With a class
    token (REG, arXiv 2507.01467) its own velocity has a loss too. With a contrastive term
    (train.contrastive) the weighted squared error against another sample's velocity is taken off
    (contrastive flow matching, arXiv 2506.05350; its public code is gstoica27/DeltaFM).

    Args:
        recipe: shape of the network, path, methods.
        feature_width: of the encoder features, for methods that need them.

    Raises:
        SetupError: where recipe and network do not fit.
    """

    def __init__(self, recipe: Recipe, *, feature_width: int | None = None):
        super().__init__()
        self.kind, self.cosine_weight = recipe.path.kind, recipe.train.cosine_loss
        self.contrastive, self.group = recipe.train.contrastive, recipe.train.group
        reg = recipe.align.get("reg", REG())  # without the method a class token is still predicted
        self.class_weight: float = getattr(reg, "class_weight")  # noqa: B009
        with _Seeded(recipe.seed, 0):
            self.network = build(recipe)
        with _Seeded(recipe.seed, 1):
            self.heads = build_heads(recipe, feature_width=feature_width)

    def methods(self) -> dict[str, align.Alignment]:
        """The alignment methods, by name."""
        return dict(self.heads.items())  # type: ignore[arg-type]

    def factors(self, step: int, epoch: int) -> dict[str, float]:
        """What multiplies the loss of each method at a step; 0: it is switched off."""
        return {name: method.factor(step, epoch) for name, method in self.methods().items()}

    def forward(
        self,
        batch: Batch,
        factors: Mapping[str, float] | None = None,
        teacher: align.Teacher | None = None,
        frozen: align.Teacher | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch, float32 scalars: "loss" (the total), "denoise", "cosine",
        "contrastive" and "class" (velocity of the class token) where there are such, one a method.

        Args:
            factors: None: those of the first step. A method whose factor is 0 has no loss.
            teacher, frozen: tokens of the EMA and of a frozen network, for methods that need them.
        """
        factors = self.factors(0, 0) if factors is None else factors
        state = self.network.pack(batch.z, batch.class_feature)
        x_t, target = path.interpolate(state, batch.noise, batch.t, self.kind)
        condition = batch.condition
        if batch.drop is not None:
            condition = self.network.null(condition, batch.drop)
        active = {n: m for n, m in self.methods().items() if factors[n]}
        depths = {depth for method in active.values() for depth in method.depths}
        out = self.network(x_t, batch.t, condition, taps=depths)
        (found, class_found), (v, class_v) = map(self.network.unpack, (out.v.float(), target))
        losses = self._denoising(batch, state, found, v)
        total = losses["denoise"]
        if "cosine" in losses:
            total = total + self.cosine_weight * losses["cosine"]
        if "contrastive" in losses:
            total = total - self.contrastive * losses["contrastive"]
        if class_found is not None and class_v is not None:
            losses["class"] = (class_found - class_v).square().mean()
            total = total + self.class_weight * losses["class"]
        inputs = align.AlignInputs(
            z=batch.z,
            mean=batch.mean,
            t=batch.t,
            condition=condition,
            c=out.c,
            teacher_uniform=batch.teacher_uniform,
            noised=lambda t: path.interpolate(state, batch.noise, t, self.kind)[0],
            features=batch.features,
            class_feature=batch.class_feature,
            class_taps=out.class_taps,
            teacher=teacher,
            frozen=frozen,
            told=batch.condition,
            null=None if frozen is None else self.network.null(batch.condition),
            v=v,
            group=self.group,
        )
        for name, method in self.methods().items():
            if name in active:
                losses[name] = method(out.taps, inputs).mean()
                total = total + factors[name] * losses[name]
            else:
                total = total + method.nothing()
        return {"loss": total, **losses}

    def _denoising(
        self, batch: Batch, state: Tensor, found: Tensor, v: Tensor
    ) -> dict[str, Tensor]:
        """Losses of the latent's velocity, without their weights; found, v: (B, C, H, W)."""
        losses = {"denoise": (found - v).square().mean()}
        if self.cosine_weight:
            losses["cosine"] = 1 - F.cosine_similarity(found, v, dim=1, eps=1e-8).mean()
        if self.contrastive:
            pair = next_of_group(state, self.group), next_of_group(batch.noise, self.group)
            other, _ = self.network.unpack(path.interpolate(*pair, batch.t, self.kind)[1])
            losses["contrastive"] = (found - other).square().mean()
        return losses


def next_of_group(x: Tensor, group: int) -> Tensor:
    """For each sample (first axis) the next one of its group; for a group's last its first."""
    return x.unflatten(0, (-1, group)).roll(-1, dims=1).flatten(0, 1)


def build_heads(recipe: Recipe, *, feature_width: int | None) -> nn.ModuleDict:
    """The alignment methods of a recipe; raises SetupError where they do not fit its network."""
    try:
        return align.build(recipe.align, shape_of(recipe), feature_width=feature_width)
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
