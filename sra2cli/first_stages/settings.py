"""What a first stage is and how it is trained."""

from dataclasses import asdict, replace
from typing import Any

from sra2cli.config.checks import (
    Count,
    Flag,
    Fraction,
    NotNegative,
    Positive,
    Seed,
    settings,
)
from sra2cli.config.reading import read_record
from sra2cli.core.errors import SetupError

GROUPS = 8  # of its group norms: what widths are multiples of
SMALL = 64  # pixels: up to here the side is divided by 4, above by 8
WIDTHS = {4: (32, 64, 128), 8: (32, 64, 128, 128)}  # by what the side is divided by


@settings
class VaeSettings:
    """Defaults are those of `sra2 vae`.

    Attributes:
        resolution: side of the images. widths: of its levels; the side is halved between two of
            them; (): by the resolution. layers: residual blocks a level. channels: of the latents.
        lr: the highest of a cycle of learning rates; warmup: the part of all steps it rises over.
        l1, mse: weights of the error of pixels. gradient: of the L1 error of differences of
            neighbouring pixels. kl: of the divergence from a normal, a dimension. perceptual: of
            1 - cosine of patch tokens of the image encoder `features`.
        flip: mirror images at random.
        held_out: the part of the images that is kept for judging. limit: images that are read at
            most, evenly over all; None: as many as 1 GB of pixels holds.
        fold_statistics: put mean and deviation of each latent channel into the convolutions beside
            the latent. one_scale: one number for all channels, without a shift. Neither: they are
            written to the config, a number a channel.
        dtype: of the weights in the file.
    """

    resolution: Count = 256
    crop: str = "adm-center"
    widths: tuple[Count, ...] = ()
    layers: Count = 1
    channels: Count = 4
    steps: Count = 5000
    batch: Count = 16
    lr: Positive = 2e-3
    warmup: Fraction = 0.05
    l1: NotNegative = 1.0
    mse: NotNegative = 0.0
    gradient: NotNegative = 0.0
    kl: NotNegative = 1e-4
    perceptual: NotNegative = 0.0
    features: str | None = None
    flip: Flag = False
    held_out: Fraction = 0.05
    limit: Count | None = None
    fold_statistics: Flag = False
    one_scale: Flag = False
    dtype: str = "float32"
    seed: Seed = 0

    @property
    def factor(self) -> int:
        """Side of an image over side of its latent."""
        return int(2 ** (len(self.widths) - 1))

    @property
    def latent(self) -> tuple[int, int, int]:
        """Shape (C, h, w) of a latent."""
        side = self.resolution // self.factor
        return self.channels, side, side

    def differs(self, record: dict[str, Any]) -> list[str]:
        """Names of the settings that differ from those of a record."""
        own = plain(self)
        return [name for name, value in own.items() if record.get(name, value) != value]


def plain(wanted: VaeSettings) -> dict[str, Any]:
    """As JSON gives them back."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(wanted).items()}


def checked(given: dict[str, Any]) -> VaeSettings:
    """Settings by name, with widths where none are given.

    Raises:
        SetupError: what does not fit, by the names of the command's options.
    """
    try:
        wanted = read_record(VaeSettings, given)
    except ValueError as error:
        said = str(error)
        for name in VaeSettings.__dataclass_fields__:
            said = said.replace(f"'{name}'", f"--{name.replace('_', '-')}")
        raise SetupError(said) from None
    if not wanted.widths:
        wanted = replace(wanted, widths=WIDTHS[4 if wanted.resolution <= SMALL else 8])
    odd = [width for width in wanted.widths if width % GROUPS]
    if odd:
        raise SetupError(f"--widths are multiples of {GROUPS}, not {odd[0]}")
    if wanted.resolution % wanted.factor:
        raise SetupError(
            f"--resolution {wanted.resolution} cannot be divided by {wanted.factor}, as "
            f"{len(wanted.widths)} --widths halve it {len(wanted.widths) - 1} times"
        )
    if not (wanted.l1 or wanted.mse):
        raise SetupError("--l1 or --mse must be above 0: nothing else compares pixels")
    if (wanted.features is None) == (wanted.perceptual > 0):
        raise SetupError("--perceptual WEIGHT and --features ENCODER go together")
    if wanted.fold_statistics and wanted.one_scale:
        raise SetupError("--fold-statistics and --one-scale: give one of them")
    return wanted


def numbers(text: str | None) -> tuple[int, ...]:
    """ "32,64" → (32, 64); None → ()."""
    try:
        return () if text is None else tuple(int(part) for part in text.split(","))
    except ValueError:
        raise SetupError(f"--widths are whole numbers, as 32,64,128; not '{text}'") from None
