"""Evaluation while training: images drawn from the EMA go straight into the metrics."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from sra2cli.config.settings import Recipe
from sra2cli.core import console
from sra2cli.data.prompts import told_in
from sra2cli.data.store import Store
from sra2cli.encoders.open import open_first_stage
from sra2cli.evaluation.judge import Judge
from sra2cli.evaluation.judging import BATCH, Judging
from sra2cli.models.build import shape_of
from sra2cli.models.contract import Backbone
from sra2cli.sampling.draw import draw
from sra2cli.sampling.settings import Sampling
from sra2cli.training.previews import drawn_in


class TrainingJudge:
    """Draws and judges images of a network, every `log.eval_every` steps.

    Everything it needs is opened at the start: what is missing is said before a step is trained.

    Raises:
        SetupError: no first stage, no such metric, no reference or no weights for it.
    """

    def __init__(self, recipe: Recipe, store: Store, *, device: str, offline: bool):
        log, info = recipe.log, store.info
        self.count, self.kind = log.eval_num, recipe.path.kind
        self.precision = drawn_in(recipe.train)
        self.sampling = Sampling(
            solver="euler", steps=log.eval_steps, labels="balanced", seed=recipe.seed
        )
        self._texts: list[str] | None = None  # of each image
        if shape_of(recipe).condition == "text":
            prompts = told_in(store, device=device, offline=offline)
            self.sampling = replace(self.sampling, labels="random", prompts=prompts)
            self._texts = prompts.texts(range(self.count), recipe.seed)
        self._first_stage = open_first_stage(info.vae, device=device, offline=offline)
        self._first_stage.check_store(info, "this store")
        judging = Judging(metric=log.eval_metrics, ref=log.eval_ref, offline=offline)
        self._judge = Judge(
            judging,
            device=device,
            first_stage=info.vae_fingerprint,
            prompts=self._texts,
        )
        _ = self._judge.reference

    def judge(self, model: Backbone) -> dict[str, Any]:
        """The metrics, and how the images were drawn."""
        found = self._judge.look(self._images(model), None)
        how = {"sampling": self.sampling.to_dict(), "precision": self.precision}
        return {**self._judge.values(found, self._texts), "count": self.count, **how}

    def _images(self, model: Backbone) -> Iterator[np.ndarray]:
        with console.progress("evaluation", self.count) as bar:
            for start in range(0, self.count, BATCH):
                part = range(start, min(start + BATCH, self.count))
                yield draw(
                    model,
                    self._first_stage,
                    part,
                    self.sampling,
                    kind=self.kind,
                    precision=self.precision,
                    batch=BATCH,
                )
                bar.advance(len(part))
