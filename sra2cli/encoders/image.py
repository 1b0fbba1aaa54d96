"""Frozen image encoders, the targets of REPA: DINOv2, or any ViT that transformers can load."""

import inspect
import re
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sra2cli.core.devices import brought
from sra2cli.core.errors import SetupError
from sra2cli.core.files import weights_fingerprint
from sra2cli.core.finite import check_finite
from sra2cli.encoders.pretrained import from_pretrained, library, readable
from sra2cli.encoders.whole import check_whole
from sra2cli.models.compiling import compile_each

NEEDED = "REPA's encoder needs transformers: pip install 'sra2[repa]'"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
UNUSED = re.compile(  # by names: what tokens after the final norm do not go through
    r"(.*\.)?(pooler\..*|mask_token|position_ids)|"
    r"(head|classifier|cls_classifier|distillation_classifier|lm_head|decoder)\..*"
)
VISION = "vision_model"  # CLIP and SigLIP hold one beside their other half
PLAIN = "Dinov2Model"
RESAMPLED = (PLAIN, "Dinov2WithRegistersModel")  # take a table of any size as it is


class Encoder:
    """uint8 images → patch tokens after the final norm, (B, side², F) float32.

    As REPA: x / 255, ImageNet mean and std, *then* bicubic without antialias to the size that gives
    `side` x `side` patches (224 for 16 x 16 patches of 14); its position table is resampled once.

    Args:
        missing: names of weights of no use that its file does not hold.
        published: resample its position table as DINOv2's own code, not as REPA.

    Attributes: width: F. patch: of the encoder. fingerprint: hash of its weights as loaded.
    class_token: whether it has one.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        *,
        side: int,
        device: torch.device,
        missing: Collection[str] = (),
        published: bool = False,
    ):
        self.name, self.side, self.device = name, side, device
        self.model = model.to(device).eval().requires_grad_(False)
        self.patch = int(self.model.config.patch_size)
        self.width = int(self.model.config.hidden_size)
        loaded = {k: v for k, v in model.state_dict().items() if k not in missing}
        check_finite(loaded, f"the encoder '{name}'")
        self.fingerprint = weights_fingerprint(loaded)
        resampled = resample_positions(self.model, side, published=published)
        knows = "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        self._mean, self._std = (  # here once: to bring them along would wait for the device
            torch.tensor(values, device=device).view(3, 1, 1)
            for values in (IMAGENET_MEAN, IMAGENET_STD)
        )
        self.class_token = False  # known when it has run
        self.options = {"interpolate_pos_encoding": True} if knows and not resampled else {}

    def compile_blocks(self) -> None:
        """torch.compile, layer by layer: transformers keeps them in lists."""
        for layers in self.model.modules():
            if isinstance(layers, nn.ModuleList):
                compile_each(layers)

    def features(self, images: Tensor) -> Tensor:
        """images: (B, H, W, 3) uint8."""
        return self.tokens(images)[:, -(self.side**2) :]

    @torch.no_grad()
    def tokens(self, images: Tensor) -> Tensor:
        """(B, P + side², F): the class token first, where there is one, registers, then patches."""
        x = brought(images, self.device).permute(0, 3, 1, 2).float() / 255
        return self.see(self._normalised(x))

    @torch.no_grad()
    def see(self, x: Tensor) -> Tensor:
        """The same of images (B, 3, size, size) that are normalised already, on its device."""
        return self._tokens(x)

    def patches(self, x: Tensor) -> Tensor:
        """`features` of images (B, 3, H, W) in 0..1 on its device, with a gradient with respect to
        them."""
        return self._tokens(self._normalised(x))[:, -(self.side**2) :]

    def _normalised(self, x: Tensor) -> Tensor:
        size = self.side * self.patch
        return F.interpolate((x - self._mean) / self._std, (size, size), mode="bicubic")

    def _tokens(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.model(pixel_values=x, **self.options).last_hidden_state
        return tokens.float()


def load_encoder(
    name: str, *, side: int, device: torch.device | str = "cpu", offline: bool = False
) -> Encoder:
    """Load an encoder by hub name or folder.

    Args:
        side: patches along a side of the image; the network's tokens along a side of its latent.

    Raises:
        SetupError: transformers is missing, there is no such encoder, or its weights are not
            complete.
        DataError: weights that are not finite.
    """
    model, missing = _read(name, offline=offline)
    return _tried(Encoder(name, model, side=side, device=torch.device(device), missing=missing))


def load_for_class_token(
    name: str, *, size: int, device: torch.device | str = "cpu", offline: bool = False
) -> Encoder:
    """An encoder that sees images of `size` pixels, whose class token is what is wanted.

    Raises:
        SetupError: as `load_encoder`; it has no class token, or patches that do not divide `size`.
        DataError: weights that are not finite.
    """
    model, missing = _read(name, offline=offline)
    side, rest = divmod(size, int(model.config.patch_size))
    if rest:
        patch = model.config.patch_size
        raise SetupError(f"the encoder '{name}' has patches of {patch}, which do not divide {size}")
    where = torch.device(device)
    found = Encoder(name, model, side=side, device=where, missing=missing, published=True)
    if not _tried(found).class_token:
        raise SetupError(f"the encoder '{name}' has no class token: choose a DINOv2")
    return found


def _read(name: str, *, offline: bool) -> tuple[Any, set[str]]:
    """A ViT, and the names of weights of no use that its file does not hold."""
    transformers = library(NEEDED)
    whole, loaded = readable(
        lambda: from_pretrained(transformers.AutoModel, name, offline=offline),
        f"the encoder '{name}'",
        "config.json and its weights",
    )
    model = getattr(whole, VISION, whole)
    prefix = "" if model is whole else f"{VISION}."
    keys = {*loaded["missing_keys"], *loaded["unexpected_keys"]}
    unused = {k for k in keys if not k.startswith(prefix) or UNUSED.fullmatch(k[len(prefix) :])}
    check_whole(f"the encoder '{name}'", loaded, unused=unused)
    missing = [k for k in ("patch_size", "hidden_size") if not hasattr(model.config, k)]
    if missing:
        raise SetupError(f"the encoder '{name}' is not a ViT: its config has no {missing[0]}")
    return model, {k.removeprefix(prefix) for k in loaded["missing_keys"]}


def _tried(encoder: Encoder) -> Encoder:
    """An encoder that cannot do this size is found out here, not hours later."""
    name, count = encoder.name, encoder.side**2
    try:
        found = encoder.tokens(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
        shape, encoder.class_token = found[:, -count:].shape, found.shape[1] > count
    except (ValueError, RuntimeError, TypeError) as error:
        raise SetupError(f"the encoder '{name}' cannot encode: {error}") from None
    if tuple(shape) != (1, count, encoder.width):
        raise SetupError(f"the encoder '{name}' gives {tuple(shape[1:])} tokens, not {count}")
    return encoder


def dinov2_base(side: int = 16) -> nn.Module:
    """DINOv2-B/14 without weights, its position table already at side x side: for counting."""
    transformers = library(NEEDED)
    config = transformers.Dinov2Config(image_size=14 * side, patch_size=14)
    model: nn.Module = transformers.Dinov2Model(config)
    return model


def resample_positions(model: Any, side: int, *, published: bool = False) -> bool:
    """Bring a learned position table (1, prefix + n², F) to side x side (bicubic, antialias).

    Args:
        published: as DINOv2's own code, where that differs: without registers it has no antialias,
            and reads at (i + 1/2) · n / (side + 0.1).

    Returns whether it now fits; a table of another kind is left alone.
    """
    embeddings: Any = getattr(model, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    if not isinstance(table, nn.Parameter) or table.dim() != 3:
        return False
    old = int((table.shape[1] - 1) ** 0.5)
    prefix = table.shape[1] - old**2
    if old == side:
        return True
    if type(model).__name__ not in RESAMPLED:
        return False
    grid = table[:, prefix:].reshape(1, old, old, -1).permute(0, 3, 1, 2).float()
    if published and type(model).__name__ == PLAIN:
        grid = F.interpolate(grid, scale_factor=(side + 0.1) / old, mode="bicubic")
    else:
        grid = F.interpolate(grid, (side, side), mode="bicubic", antialias=True)
    grid = grid.permute(0, 2, 3, 1).reshape(1, side**2, -1)
    resampled = torch.cat([table[:, :prefix], grid.to(table.dtype)], dim=1)
    embeddings.position_embeddings = nn.Parameter(resampled, requires_grad=False)
    return True
