"""Evaluation while training: images drawn from the EMA go straight into the metrics."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from sra2cli import console, scores
from sra2cli.features import Extractor, features_of
from sra2cli.generate import Sampling, draw
from sra2cli.reference import Reference, open_extractor, open_reference
from sra2cli.settings import Recipe
from sra2cli.sit import SiT
from sra2cli.store import StoreInfo
from sra2cli.vae import Vae, load_vae

BATCH = 64


class Judge:
    """Draws and judges images of a network, every `log.eval_every` steps.

    Everything it needs is opened at the start: what is missing is said before a step is trained.

    Raises:
        SetupError: no VAE, no such metric, no reference or no weights for it.
    """

    def __init__(self, recipe: Recipe, info: StoreInfo, *, device: str, offline: bool):
        log = recipe.log
        self.names = scores.parse(log.eval_metrics)
        self.count, self.kind, self.device = log.eval_num, recipe.path.kind, device
        self.sampling = Sampling(
            solver="euler", steps=log.eval_steps, labels="balanced", seed=recipe.seed
        )
        self._vae: Vae = load_vae(info.vae, device=device, offline=offline)
        self._vae.check_store(info.vae_fingerprint, info.vae, "this store")
        self._extractor: Extractor = open_extractor(self.names, None, device)
        self._reference: Reference | None = open_reference(
            log.eval_ref, self._extractor, self.names, batch=BATCH
        )

    def judge(self, model: SiT) -> dict[str, Any]:
        """The metrics, and how the images were drawn."""
        training = model.training
        found = features_of(self._extractor, self._images(model.eval()), scores.wanted(self.names))
        model.train(training)
        real = self._reference.kept if self._reference is not None else None
        values = scores.values(self.names, found, real, distances="float16", device=self.device)
        return {**values, "count": self.count, "sampling": self.sampling.to_dict()}

    def _images(self, model: SiT) -> Iterator[np.ndarray]:
        with console.progress("evaluation", self.count) as bar:
            for start in range(0, self.count, BATCH):
                part = range(start, min(start + BATCH, self.count))
                yield draw(model, self._vae, part, self.sampling, kind=self.kind)
                bar.advance(len(part))
