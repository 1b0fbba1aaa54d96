"""Mean and deviation of each latent channel, as VA-VAE's and REPA-E's users keep them in files.

Scaled latents are (z - mean) / std: shift is the mean, scale is 1 / std.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sra2cli.core.errors import DataError, SetupError
from sra2cli.models import checkpoint_files

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # scale, shift: a number a channel
FORMS: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {  # mean, and what gives the deviation
    ("mean", "std"): lambda std: std,
    ("latents_mean", "latents_std"): lambda std: std,
    ("latents_bias", "latents_scale"): lambda scale: 1 / scale,
    ("bn.running_mean", "bn.running_var"): lambda variance: variance.sqrt(),
}


def scale_and_shift(mean: Tensor, std: Tensor, of: str) -> Statistics:
    """From the mean and deviation of each channel, both C numbers in any shape.

    Raises:
        DataError: they are not finite, or a deviation is not above 0.
    """
    mean, std = mean.double().flatten(), std.double().flatten()
    if len(mean) != len(std):
        raise DataError(f"{of}: {len(mean)} means, but {len(std)} deviations")
    if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise DataError(f"{of}: its statistics are not finite numbers with deviations above 0")
    return tuple((1 / std).tolist()), tuple(mean.tolist())


def read_statistics(path: Path, channels: int) -> Statistics:
    """From a file with mean and std (LightningDiT's latents_stats.pt), latents_bias and
    latents_scale, its 1 / std (REPA-E's), or a checkpoint's bn.running_mean and running_var.

    Args:
        channels: C, of the first stage.

    Raises:
        SetupError: no such file, none of these in it, or of another number of channels.
        DataError: a damaged file.
    """
    if not path.is_file():
        raise SetupError(f"no statistics {path}: give a file, as latents_stats.pt, or 'compute'")
    content, _ = checkpoint_files.read(path)
    inside = [content.get(k) for k in ("ema", "model", "state_dict")]  # of a checkpoint
    parts = [content, *(part for part in inside if isinstance(part, Mapping))]
    found = next((s for p in parts if (s := statistics_of(p, str(path))) is not None), None)
    if found is None:
        keys = ", ".join(str(k)[:40] for k in list(content)[:5]) or "nothing"
        raise SetupError(
            f"{path} holds no statistics of latents: expected mean and std, or latents_bias and "
            f"latents_scale (it has {keys})"
        )
    if len(found[0]) != channels:
        raise SetupError(
            f"{path} is of another VAE: statistics of {len(found[0])} channels, the VAE has "
            f"{channels}"
        )
    return found


def statistics_of(content: Mapping[Any, Any], of: str) -> Statistics | None:
    """The statistics that a file or state dict holds, whatever it calls them; None: it has none.

    Raises:
        DataError: they are no numbers, not finite, or a deviation is not above 0.
    """
    for names, to_std in FORMS.items():
        if not all(isinstance(content.get(name), Tensor | list | tuple) for name in names):
            continue
        try:
            mean, spread = (torch.as_tensor(content[name], dtype=torch.float64) for name in names)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{of}: {' and '.join(names)} are no numbers: {error}") from None
        return scale_and_shift(mean, to_std(spread), of)
    return None
