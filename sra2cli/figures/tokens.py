"""A network's tokens at chosen blocks and noise levels, of images of a store or of a file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sra2cli.core import clock
from sra2cli.core.clock import Purpose
from sra2cli.core.errors import DataError, SetupError
from sra2cli.core.finite import check_finite
from sra2cli.data.conditions import CONDITIONS, blank
from sra2cli.data.fitting import check_class_feature
from sra2cli.data.images import known_crop, read_image
from sra2cli.data.prompts import text_encoder_of
from sra2cli.data.store import Store
from sra2cli.data.store_info import CLASS_FEATURE
from sra2cli.diffusion.path import interpolate
from sra2cli.encoders.first_stage import FirstStage, scaled_latents
from sra2cli.models.contract import Condition, Shape
from sra2cli.runs.network import Network
from sra2cli.runs.run import Run

BATCH = 32


@dataclass(frozen=True)
class Latents:
    """Posterior means z (N, C, h, w), scaled; what the network is told; names of the images;
    class_feature (N, F) where the network has a class token."""

    z: Tensor
    condition: Condition
    names: list[str]
    class_feature: Tensor | None = None


def store_of(source: Path, network: Network, data: Path | None) -> Store:
    """The store given, or the one a run was trained on; of the network's first stage.

    Raises:
        SetupError: neither is there, or it does not fit.
    """
    if data is None:
        if network.run is None:
            raise SetupError(f"{source} does not say where its store lies: give one, --data")
        data = Path(Run(network.run).about["store"]["path"])
        if not data.is_file():
            raise SetupError(f"the store of {source} is no longer at {data}: give it with --data")
    store, config = Store(data), network.model.shape
    info = store.info
    if (info.channels, info.latent) != (config.channels, config.latent):
        raise SetupError(
            f"{data} holds latents of {info.channels}x{info.latent}x{info.latent}, the network "
            f"takes {config.channels}x{config.latent}x{config.latent}: choose another --data"
        )
    if config.classes and info.classes != config.classes:
        raise SetupError(
            f"{data} has {info.classes} classes, the network {config.classes}: "
            "choose another --data"
        )
    if (differ := network.other_data(info)) is not None:
        raise SetupError(
            f"{data} is not as what the network was trained on: it has {differ}: choose another "
            "--data"
        )
    if config.condition == "text" and store.captions is None:
        raise SetupError(
            f"{data} has no captions, which the network is told: choose another --data"
        )
    check_class_feature(store, config.class_width)
    return store


def stored(store: Store, rows: Sequence[int], shape: Shape, *, offline: bool = False) -> Latents:
    """Latents of some rows of a store, for a network of this shape."""
    wrong = next((row for row in rows if not 0 <= row < len(store)), None)
    if wrong is not None:
        raise SetupError(f"{store.path} has images 0..{len(store) - 1}, no {wrong}")
    at = np.asarray(rows)
    moments = store.moments(at).float()
    z = scaled_latents(moments, None, scale=store.info.scale, shift=store.info.shift)
    check_finite({"latents": z}, str(store.path))
    feature = store.read(CLASS_FEATURE, at).float() if shape.class_width else None
    told = _told(store, at, shape, offline)
    return Latents(z, told, [store.names[row] for row in rows], feature)


def _told(store: Store, rows: np.ndarray, shape: Shape, offline: bool) -> Condition:
    """The labels of some rows, or the first caption of each."""
    scalars = np.zeros((len(rows), clock.SCALARS), np.float32)
    told = CONDITIONS[shape.condition].of_rows(store, rows, None, scalars, shape)
    if told.text is not None and told.text.dim() == 2:
        encoder = text_encoder_of(store.info, device="cpu", offline=offline)
        return Condition(text=encoder.encode(told.text))
    return told.map(lambda x: x.float() if x.is_floating_point() else x.long())


def encoded(file: Path, vae: FirstStage, network: Network, label: int | None) -> Latents:
    """The latent of an image file, cropped as the store was. label: a class; None: the null one."""
    if not file.is_file():
        raise SetupError(f"no image {file}")
    config = network.model.shape
    if config.class_width:
        raise SetupError(
            "--image: a network with a class token (REG) needs the class feature of its encoder, "
            "which a store holds: choose one of its images with --index"
        )
    try:
        crop = known_crop(network.store.crop if network.store else "")
        image = read_image(file, config.latent * vae.factor, crop)
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    moments = vae.encode(torch.from_numpy(image.copy())[None])
    z = scaled_latents(moments, None, scale=vae.scale, shift=vae.shift).cpu()
    if label is not None and not 0 <= label < max(config.classes, 1):
        raise SetupError(f"--label: there is no class {label}; classes are 0..{config.classes - 1}")
    if config.condition == "text":
        if label is not None:
            raise SetupError("--label is for networks with classes; this one is told captions")
        told = network.model.null(blank(config))
        return Latents(z, told, [file.name])
    y = torch.tensor([config.classes if label is None else label])
    return Latents(z, Condition(y=y if config.classes else None), [file.name])


def noised(latents: Latents, t: float, network: Network, seed: int) -> Tensor:
    """The state x_t (N, ...); the noise of image k is a function of (seed, k)."""
    state = network.model.pack(latents.z, latents.class_feature)
    count, *shape = state.shape
    noise = torch.from_numpy(clock.normals(seed, Purpose.SAMPLE, 0, range(count), tuple(shape)))
    return interpolate(state, noise, torch.full((count,), t), network.path)[0]


@torch.no_grad()
def tokens(
    network: Network, x_t: Tensor, t: float, condition: Condition, blocks: Sequence[int]
) -> Iterator[dict[int, Tensor]]:
    """Tokens (up to `BATCH`, T, D) float32, on the CPU, after each of some blocks (1-based).

    A batch at a time: all of XL/2's tokens of 512 images would be 17 GB. DataError: not finite.
    """
    model, device = network.model, next(network.model.parameters()).device
    for k in range(0, len(x_t), BATCH):
        part = x_t[k : k + BATCH].to(device)
        here = slice(k, k + BATCH)
        told = Condition(**{key: x[here].to(device) for key, x in condition.present().items()})
        _, tapped = model(part, torch.full((len(part),), t, device=device), told, taps=set(blocks))
        named = {f"tokens after block {block}": tapped[block] for block in blocks}
        check_finite(named, f"the network at t = {t:g}")
        yield {block: tapped[block].float().cpu() for block in blocks}
