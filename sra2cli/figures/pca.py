"""sra2 figures pca: tokens as colours, over blocks and noise levels (the paper's Figure 2)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sra2cli.core import console, pictures
from sra2cli.core.errors import SetupError
from sra2cli.encoders.first_stage import FirstStage
from sra2cli.figures import linear_probe
from sra2cli.figures.linear_probe import Sums
from sra2cli.figures.opening import What, chosen_blocks, default_file, opened
from sra2cli.figures.tokens import Latents, encoded, noised, store_of, stored, tokens
from sra2cli.runs.naming import title_of
from sra2cli.runs.network import Network
from sra2cli.sampling.opening import first_stage_of

FITTED = 64  # images whose tokens decide the principal components


def pca(
    source: Path,
    what: What,
    *,
    index: int = 0,
    image: Path | None = None,
    label: int | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Figure 2: an image, its VAE feature and a network's tokens over blocks and noise, by PCA.

    The components of a block are those of the tokens of `FITTED` images of the store (without one,
    of the image) over all noise levels, about the mean of each: so colours compare down a column.

    Args:
        index: of an image of the store. image: a file instead, and its label.

    Returns:
        {"picture": PNG, "blocks", "times", "fitted_images", ...}

    Raises:
        SetupError: no network, store or image; blocks or times that cannot be.
    """
    source, network = opened(source, what)
    vae = first_stage_of(network, what.options, device=what.device)
    blocks = chosen_blocks(network, what.blocks)
    latents, fitted = images_of(source, network, vae, what, index, image, label)
    side = network.model.shape.side
    of_z = linear_probe.sums(pixels(fitted.z))
    feature = linear_probe.colours(
        pixels(latents.z), of_z.mean, linear_probe.components(of_z.scatter)
    )
    size = network.model.shape.latent
    top = [
        ("decoded latent", vae.decode(latents.z)[0]),
        ("VAE feature", as_image(feature, size)),
    ]
    means, directions = axes_of(network, fitted, what, blocks)
    rows = []
    for t in what.times:
        x = noised(latents, t, network, what.seed)
        (found,) = tokens(network, x, t, latents.condition, blocks)
        shown = [linear_probe.colours(found[b][0], means[t, b], directions[b]) for b in blocks]
        images = [
            vae.decode(network.model.unpack(x)[0])[0],
            *(as_image(colours, side) for colours in shown),
        ]
        rows.append((f"t = {t:g}", images))
    name = title_of(network.about, source)
    stem = "-".join(Path(latents.names[0]).with_suffix("").parts[-2:])
    file = out or default_file(source, network, f"pca-{stem}")
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = ["decoded x_t", *(f"block {b}" for b in blocks)]
    pictures.pca_sheet(f"{name}: {latents.names[0]}", top, rows, columns, file)
    return {
        "picture": str(file),
        "source": name,
        "image": latents.names[0],
        "blocks": list(blocks),
        "times": list(what.times),
        "fitted_images": len(fitted.z),
    }


def axes_of(
    network: Network, fitted: Latents, what: What, blocks: Sequence[int]
) -> tuple[dict[tuple[float, int], Tensor], dict[int, Tensor]]:
    """(t, block) → mean of the tokens; block → components over all noise levels."""
    means: dict[tuple[float, int], Tensor] = {}
    scattered: dict[int, Tensor] = {}
    with console.progress("tokens", len(what.times), unit="noise levels") as bar:
        for t in what.times:
            x = noised(fitted, t, network, what.seed + 1)
            found: dict[int, Sums] = {}
            for batch in tokens(network, x, t, fitted.condition, blocks):
                for block, values in batch.items():
                    more = linear_probe.sums(values.flatten(0, 1))
                    found[block] = found[block] + more if block in found else more
            for block, sums in found.items():
                means[t, block] = sums.mean
                scattered[block] = scattered.get(block, torch.zeros(())) + sums.scatter
            bar.advance()
    return means, {block: linear_probe.components(total) for block, total in scattered.items()}


def images_of(
    source: Path,
    network: Network,
    vae: FirstStage,
    what: What,
    index: int,
    image: Path | None,
    label: int | None,
) -> tuple[Latents, Latents]:
    """The image that is shown, and those that decide the components."""
    if label is not None and image is None:
        raise SetupError("--label is the class of --image")
    shape = network.model.shape
    if image is not None and what.data is None and network.run is None:
        shown = encoded(image, vae, network, label)
        return shown, shown
    store = store_of(source, network, what.data)
    vae.check_store(store.info, str(store.path))  # its scale and shift are now those of the store
    offline = what.options.offline
    rows = np.linspace(0, len(store) - 1, min(FITTED, len(store))).astype(int)
    fitted = stored(store, rows.tolist(), shape, offline=offline)
    if image is not None:
        return encoded(image, vae, network, label), fitted
    return stored(store, [index], shape, offline=offline), fitted


def pixels(z: Tensor) -> Tensor:
    """(N, C, h, w) → (N * h * w, C)."""
    return z.permute(0, 2, 3, 1).flatten(0, 2)


def as_image(values: Tensor, side: int) -> np.ndarray:
    """(side², 3) in [0, 1] → (side, side, 3) uint8."""
    return (values * 255).round().to(torch.uint8).view(side, side, 3).numpy()
