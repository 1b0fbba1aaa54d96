"""What is stored of each image beside the moments of the first stage: the table of its makers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from sra2cli.core.errors import SetupError
from sra2cli.core.processes import Group
from sra2cli.data.sources import CONVENTION, Choice
from sra2cli.data.store_info import CLASS_FEATURE, RowSet, StoredType, StoreInfo
from sra2cli.encoders.first_stage import EncodePrecision
from sra2cli.encoders.image import load_encoder
from sra2cli.encoders.open import DEFAULT


@dataclass(frozen=True)
class Options:
    """How to extract. Nothing here but vae, encoder, feature_patch, resolution, crop, mirrored,
    precision, dtype, text_* and latent_* changes the numbers (on a GPU `batch` may change last
    digits).

    vae, encoder: folders or hub names; with an encoder, its features are stored for REPA.
    crop: a row of `images.CROPS`.
    mirrored: also encode the mirrored images (a latent cannot be mirrored).
    feature_patch: of the network to be trained: one feature for each of its tokens.
    batch: images encoded together; on a CPU as many as `unit` says run through the network at once.
    workers: decoding processes; None: by the CPUs.
    logvar: latents of others hold mean‖logvar.
    latent_stats: a file of statistics of latents, or "compute"; None: the first stage's.
    latent_scale: "both": the first stage's scaling_factor beside statistics.
    text_encoder: "words", a folder or a hub name; with it captions are stored, and their ids.
    text_features: also store its features of all captions.
    choice: what to take where the source can be read in several ways.
    """

    vae: str = DEFAULT
    resolution: int = 256
    crop: str = "adm-center"
    mirrored: bool = False
    encoder: str | None = None
    feature_patch: int = 2
    precision: EncodePrecision = "fp32"
    dtype: StoredType = "float32"
    batch: int | None = None
    workers: int | None = None
    logvar: bool = False
    offline: bool = False
    latent_stats: str | None = None
    latent_scale: str = "statistics"
    text_encoder: str | None = None
    text_features: bool = False
    choice: Choice = CONVENTION


@dataclass(frozen=True)
class Maker:
    """Rows of one or several sets, made in one go.

    rows: what is made, by name. make: uint8 images (B, H, W, 3) → {name: (B, *shape)}.
    attributes: of StoreInfo that declare rows; the others are declared in StoreInfo.extra.
    """

    rows: Mapping[str, RowSet]
    make: Callable[[Tensor], Mapping[str, Tensor]]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def declared(self, info: StoreInfo) -> StoreInfo:
        """What the store says of itself with these rows in it."""
        info = replace(info, **self.attributes)
        others = {name: rows for name, rows in self.rows.items() if name not in info.sets}
        return replace(info, extra={**info.extra, **others})


def image_features(options: Options, info: StoreInfo, group: Group) -> Maker | None:
    """Patch tokens of an image encoder, and its class token if it has one, if it was asked for."""
    if options.encoder is None:
        return None
    if info.latent % options.feature_patch:
        raise SetupError(f"--feature-patch {options.feature_patch} does not divide {info.latent}")
    side = info.latent // options.feature_patch
    encoder = load_encoder(options.encoder, side=side, device=group.device, offline=options.offline)
    made_by = options.encoder, encoder.fingerprint
    rows = {"features": RowSet((side**2, encoder.width), "float16", *made_by)}
    if encoder.class_token:
        rows[CLASS_FEATURE] = RowSet((encoder.width,), "float16", *made_by)

    def make(images: Tensor) -> dict[str, Tensor]:
        tokens = encoder.tokens(images).half()
        return {"features": tokens[:, -(side**2) :], CLASS_FEATURE: tokens[:, 0]}

    return Maker(
        rows,
        make,
        {
            "encoder": options.encoder,
            "encoder_fingerprint": encoder.fingerprint,
            "feature_tokens": side**2,
            "feature_width": encoder.width,
        },
    )


MAKERS: list[Callable[[Options, StoreInfo, Group], Maker | None]] = [image_features]
