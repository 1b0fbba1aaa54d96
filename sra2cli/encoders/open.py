"""Opening a first stage by its name: the table of those there are."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sra2cli.encoders.first_stage import EncodePrecision, FirstStage
from sra2cli.encoders.vae import is_ldm, load_ldm, load_vae

DEFAULT = "stabilityai/sd-vae-ft-mse"  # what images are encoded with
PUBLISHED = "stabilityai/sd-vae-ft-ema"  # what the published checkpoints are decoded with


@dataclass(frozen=True)
class Opener:
    """A row. fits: whether a name (or folder) is one of its kind; open: as `open_first_stage`."""

    fits: Callable[[str], bool]
    open: Callable[..., FirstStage]


FIRST_STAGES: dict[str, Opener] = {  # the first that fits; AutoencoderKL says what it is not
    "LDM's file": Opener(is_ldm, load_ldm),
    "AutoencoderKL": Opener(lambda name: True, load_vae),
}


def open_first_stage(
    name: str,
    *,
    device: torch.device | str = "cpu",
    offline: bool = False,
    precision: EncodePrecision = "fp32",
) -> FirstStage:
    """A first stage: "digits", "emoji" (packaged), a folder, a file (VA-VAE's .pt), a hub name.

    Args:
        offline: never touch the network; a hub name must then be in the local cache.
        precision: of the encoder.

    Raises:
        SetupError: it is not there, or is none of the kinds we know.
    """
    opener = next(row for row in FIRST_STAGES.values() if row.fits(name))
    return opener.open(name, device=device, offline=offline, precision=precision)
