"""sra2 figures: what a network's tokens hold, as pictures (the paper's Figure 2, and a probe)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sra2cli.core import console, pictures
from sra2cli.core.environment import environment
from sra2cli.core.errors import SetupError
from sra2cli.core.files import write_json
from sra2cli.encoders.first_stage import FirstStage
from sra2cli.figures import linear_probe
from sra2cli.figures.linear_probe import Sums
from sra2cli.figures.tokens import Latents, encoded, noised, store_of, stored, tokens
from sra2cli.models.layers import patchify
from sra2cli.runs.naming import split_step, title_of
from sra2cli.runs.network import Network
from sra2cli.sampling.opening import Options, first_stage_of

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
FITTED = 64  # images whose tokens decide the principal components
SHOWN_BLOCKS = 6
LEAST = 8  # images of a probe
INPUT = 0  # "block" of the probe: the patches of x_t itself


@dataclass(frozen=True)
class What:
    """What is looked at, and with what.

    data: a store; None: the run's. blocks: (): chosen. options: as those of `sample`.
    """

    data: Path | None = None
    times: tuple[float, ...] = TIMES
    blocks: tuple[int, ...] = ()
    seed: int = 0
    device: str = "cpu"
    options: Options = field(default_factory=Options)


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


def probe(
    sources: Sequence[Path], what: What, *, num: int = 512, out: Path | None = None
) -> dict[str, Any]:
    """How well tokens predict the VAE feature of their patch, over blocks and noise levels.

    A ridge regression is fitted on three quarters of `num` images and judged on the rest (R²);
    linear CKA is over the rest. Block 0 is the noised latent's own patches: what is there before
    the network. A panel a network, in one picture; numbers go beside it as JSON.

    Raises:
        SetupError: no network or store, fewer than `LEAST` images.
    """
    panels, results, files = [], [], []
    for given in sources:
        source, network = opened(given, what)
        blocks = chosen_blocks(network, what.blocks, every=True)
        store = store_of(source, network, what.data)
        count = min(num, len(store))
        if count < LEAST:
            raise SetupError(f"a probe needs {LEAST} images, not {count}: --num, or another --data")
        rows = np.linspace(0, len(store) - 1, count).astype(int)
        latents = stored(store, rows.tolist(), network.model.shape)
        table = predictability(network, latents, what, blocks)
        name = title_of(network.about, source)
        files.append(default_file(source, network, "probe"))
        panels.append((name, [INPUT, *blocks], table))
        results.append({"source": name, "store": str(store.path), "images": count, "rows": table})
    together = "-".join(["probe", *(source.name for source in sources)]).replace("@", "-")
    file = out or (files[0] if len(files) == 1 else files[0].with_name(f"{together}.png"))
    file.parent.mkdir(parents=True, exist_ok=True)
    pictures.probe_sheet(panels, file)
    numbers = file.with_suffix(".json")
    found = {"results": results, "seed": what.seed, "environment": environment(what.device)}
    write_json(numbers, found)
    return {"picture": str(file), "file": str(numbers), "results": results}


def predictability(
    network: Network, latents: Latents, what: What, blocks: Sequence[int]
) -> list[dict[str, float]]:
    """{"t", "block", "r2", "cka"} for each noise level and block."""
    patch = network.model.shape.patch
    target = patchify(latents.z, patch)
    test = torch.arange(len(target)) % 4 == 3  # spread over the store, which may be sorted
    found = []
    with console.progress("probe", len(what.times), unit="noise levels") as bar:
        for t in what.times:
            x = noised(latents, t, network, what.seed)
            inputs = patchify(network.model.unpack(x)[0], patch)
            sums: dict[tuple[int, bool], Sums] = {}
            at = 0
            for batch in tokens(network, x, t, latents.condition, blocks):
                count = len(next(iter(batch.values())))
                part = slice(at, at + count)
                for block, values in {INPUT: inputs[part], **batch}.items():
                    for judged in (False, True):
                        chosen = test[part] == judged
                        more = linear_probe.sums(
                            values[chosen].flatten(0, 1), target[part][chosen].flatten(0, 1)
                        )
                        key = (block, judged)
                        sums[key] = sums[key] + more if key in sums else more
                at += count
            for block in (INPUT, *blocks):
                fit, judge = sums[block, False], sums[block, True]
                r2, cka = linear_probe.probe(fit, judge), linear_probe.cka(judge)
                found.append({"t": t, "block": block, "r2": r2, "cka": cka})
            bar.advance()
    return found


def opened(source: Path, what: What) -> tuple[Path, Network]:
    """A network on its device, and its run or file without a step."""
    network = what.options.open(source)
    network.model.to(what.device)
    return split_step(source)[0], network


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
    if image is not None and what.data is None and network.store is None:
        shown = encoded(image, vae, network, label)
        return shown, shown
    store = store_of(source, network, what.data)
    vae.check_store(store.info, str(store.path))  # its scale and shift are now those of the store
    shown = stored(store, [index], shape) if image is None else encoded(image, vae, network, label)
    rows = np.linspace(0, len(store) - 1, min(FITTED, len(store))).astype(int)
    return shown, stored(store, rows.tolist(), shape)


def chosen_blocks(
    network: Network, wanted: Sequence[int], *, every: bool = False
) -> tuple[int, ...]:
    """The blocks asked for; by default all, or `SHOWN_BLOCKS` evenly spaced."""
    depth = network.model.shape.depth
    wrong = next((b for b in wanted if not 1 <= b <= depth), None)
    if wrong is not None:
        raise SetupError(f"--blocks: the network has blocks 1..{depth}, no {wrong}")
    count = depth if every else min(SHOWN_BLOCKS, depth)
    return tuple(wanted) or tuple(sorted({round(b) for b in np.linspace(1, depth, count)}))


def pixels(z: Tensor) -> Tensor:
    """(N, C, h, w) → (N * h * w, C)."""
    return z.permute(0, 2, 3, 1).flatten(0, 2)


def as_image(values: Tensor, side: int) -> np.ndarray:
    """(side², 3) in [0, 1] → (side, side, 3) uint8."""
    return (values * 255).round().to(torch.uint8).view(side, side, 3).numpy()


def default_file(source: Path, network: Network, kind: str) -> Path:
    """Inside a run; beside a checkpoint of others."""
    if network.store is None:
        return source.with_name(f"{source.stem}-{kind}.png")
    return network.samples.parent / "figures" / f"{kind}-step{network.step or 0:07d}.png"
