"""sra2 figures probe: what a network's tokens hold of a target, over blocks and noise levels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sra2cli.core import console, pictures
from sra2cli.core.environment import environment
from sra2cli.core.errors import SetupError
from sra2cli.core.files import write_json
from sra2cli.figures import linear_probe
from sra2cli.figures.beside import Asked, features_of
from sra2cli.figures.linear_probe import Sums
from sra2cli.figures.neighbours import NEIGHBOURS, cknna
from sra2cli.figures.opening import What, chosen_blocks, default_file, opened
from sra2cli.figures.tokens import Latents, noised, store_of, stored, tokens
from sra2cli.models.layers import patchify
from sra2cli.runs.naming import name_of, title_of
from sra2cli.runs.network import Network

LEAST = NEIGHBOURS + 2  # images of a probe
INPUT = 0  # "block" of the probe: the patches of x_t itself
VAE, ENCODER = "", "encoder_"  # what tokens are held beside: how its numbers' names begin


def probe(
    sources: Sequence[Path],
    what: What,
    *,
    num: int = 512,
    asked: Asked | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """How well tokens predict the VAE feature of their patch, over blocks and noise levels.

    A ridge regression is fitted on three quarters of `num` images and judged on the rest (R²);
    linear CKA is over the rest, token by token. CKNNA is over all images, each the mean of its
    tokens, patches or features. Block 0 is the noised latent's own patches: what is there before
    the network. A panel a network, in one picture; numbers go beside it as JSON.

    Args:
        asked: an encoder, whose features stand as a target beside the VAE's.

    Raises:
        SetupError: no network or store, fewer than `LEAST` images, no features of the encoder.
    """
    panels, results, files = [], [], []
    for given in sources:
        source, network = opened(given, what)
        blocks = chosen_blocks(network, what.blocks, every=True)
        store, shape = store_of(source, network, what.data), network.model.shape
        count = min(num, len(store))
        if count < LEAST:
            raise SetupError(f"a probe needs {LEAST} images, not {count}: --num, or another --data")
        rows = np.linspace(0, len(store) - 1, count).astype(int)
        latents = stored(store, rows.tolist(), shape, offline=what.options.offline)
        targets = {VAE: patchify(latents.z, shape.patch)}
        about: dict[str, Any] = {"store": str(store.path), "images": count}
        if asked is not None:
            offline = what.options.offline
            found = features_of(store, rows, asked, shape, device=what.device, offline=offline)
            targets[ENCODER] = found.values
            about["encoder"] = {"name": found.encoder, "fingerprint": found.fingerprint}
        table = predictability(network, latents, targets, what, blocks)
        name = title_of(network.about, source)
        files.append(default_file(source, network, "probe"))
        panels.append((name, [INPUT, *blocks], table))
        results.append({"source": name, **about, "neighbours": NEIGHBOURS, "rows": table})
    together = "-".join(["probe", *(name_of(source) for source in sources)]).replace("@", "-")
    file = out or (files[0] if len(files) == 1 else files[0].with_name(f"{together}.png"))
    file.parent.mkdir(parents=True, exist_ok=True)
    measures = [("r2", "R² of the VAE feature, by a linear probe")]
    if asked is not None:
        measures.append((f"{ENCODER}cknna", f"CKNNA with {Path(asked.encoder).name}"))
    pictures.probe_sheet(panels, measures, file)
    numbers = file.with_suffix(".json")
    made = {"results": results, "seed": what.seed, "environment": environment(what.device)}
    write_json(numbers, made)
    return {"picture": str(file), "file": str(numbers), "results": results}


def predictability(
    network: Network,
    latents: Latents,
    targets: Mapping[str, Tensor],
    what: What,
    blocks: Sequence[int],
) -> list[dict[str, float]]:
    """{"t", "block"} and {"r2", "cka", "cknna"} of each target for each noise level and block.

    targets: (N, T, E) by what the names of their numbers begin with.
    """
    patch = network.model.shape.patch
    means = {name: target.double().mean(dim=1) for name, target in targets.items()}
    found = []
    with console.progress("probe", len(what.times), unit="noise levels") as bar:
        for t in what.times:
            x = noised(latents, t, network, what.seed)
            inputs = patchify(network.model.unpack(x)[0], patch)
            seen = {block: Seen() for block in (INPUT, *blocks)}
            at = 0
            for batch in tokens(network, x, t, latents.condition, blocks):
                part = slice(at, at + len(next(iter(batch.values()))))
                beside = torch.cat([target[part].float() for target in targets.values()], dim=2)
                for block, values in {INPUT: inputs[part], **batch}.items():
                    seen[block].add(values, beside, at)
                at = part.stop
            for block, tokens_seen in seen.items():
                found.append({"t": t, "block": block, **tokens_seen.numbers(means)})
            bar.advance()
    return found


class Seen:
    """What is kept of a block's tokens: sums with the targets, and the mean of each image."""

    def __init__(self) -> None:
        self._sums: dict[bool, Sums] = {}  # by whether they are judged, or fitted
        self._means: list[Tensor] = []

    def add(self, values: Tensor, targets: Tensor, first: int) -> None:
        """Tokens (B, T, D) and targets (B, T, E) of the images from `first` on."""
        test = (first + torch.arange(len(values))) % 4 == 3  # spread over a store that is sorted
        for judged in (False, True):
            chosen = test == judged
            more = linear_probe.sums(values[chosen].flatten(0, 1), targets[chosen].flatten(0, 1))
            self._sums[judged] = self._sums[judged] + more if judged in self._sums else more
        self._means.append(values.double().mean(dim=1))

    def numbers(self, targets: Mapping[str, Tensor]) -> dict[str, float]:
        """Targets: the mean of each image (N, E), in the order of their columns."""
        means, found, at = torch.cat(self._means), {}, 0
        for name, target in targets.items():
            columns = slice(at, at + target.shape[1])
            fit, judge = (self._sums[judged].of(columns) for judged in (False, True))
            found[f"{name}r2"] = linear_probe.probe(fit, judge)
            found[f"{name}cka"] = linear_probe.cka(judge)
            found[f"{name}cknna"] = cknna(means, target)
            at = columns.stop
        return found
