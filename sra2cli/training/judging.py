"""Evaluation while training: images drawn from the EMA go straight into the metrics."""

import math
from dataclasses import replace
from typing import Any

from torch import Tensor

from sra2cli.config.settings import Recipe
from sra2cli.core import console
from sra2cli.core.processes import Group
from sra2cli.data.prompts import told_in
from sra2cli.data.store import Store
from sra2cli.encoders.open import open_first_stage
from sra2cli.evaluation.extractors import Collected, Collector
from sra2cli.evaluation.judge import Judge
from sra2cli.evaluation.judging import BATCH, Judging
from sra2cli.models.build import shape_of
from sra2cli.models.contract import Backbone
from sra2cli.sampling.draw import draw
from sra2cli.sampling.settings import Sampling
from sra2cli.training.previews import drawn_in


class TrainingJudge:
    """Draws and judges images of a network, every `log.eval_every` steps.

    Each process draws its share of the parts of `BATCH` images; the main one takes up the features
    of all in the order of the images, so the numbers do not depend on how many there are.
    Everything that is needed is opened at the start: what is missing is said before a step.

    Raises:
        SetupError: no first stage, no such metric, no reference or no weights for it.
    """

    def __init__(self, recipe: Recipe, store: Store, group: Group, *, offline: bool):
        log, info, device = recipe.log, store.info, group.device
        self.group, self.count, self.kind = group, log.eval_num, recipe.path.kind
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
        if group.main:
            _ = self._judge.reference
        self._need = self._judge.needed(None)
        self._found: list[dict[str, Tensor]] = []

    def look(self, model: Backbone) -> None:
        """Draw this process's share, and keep what is needed of it."""
        self._found = []
        kept = self._need.features
        with console.progress("evaluation", self.count) as bar:
            for start in range(0, self.count, BATCH):
                part = range(start, min(start + BATCH, self.count))
                if start // BATCH % self.group.count == self.group.rank:
                    images = draw(
                        model,
                        self._first_stage,
                        part,
                        self.sampling,
                        kind=self.kind,
                        precision=self.precision,
                        batch=BATCH,
                    )
                    features = self._judge.together.run(images)
                    self._found.append({name: features[name].cpu() for name in kept})
                bar.advance(len(part))

    def together(self) -> Collected | None:
        """What all have seen; None on all processes but the main one. All of them must ask."""
        collector = Collector(self._judge.together, self._need)
        rounds = math.ceil(self.count / (BATCH * self.group.count))
        for number in range(rounds):
            own = self._found[number] if number < len(self._found) else None
            for features in self.group.gather(own):
                if features is not None:
                    collector.take(features)
        self._found = []
        return collector.finish() if self.group.main else None

    def values(self, found: Collected) -> dict[str, Any]:
        """The metrics, and how the images were drawn."""
        how = {"sampling": self.sampling.to_dict(), "precision": self.precision}
        return {**self._judge.values(found, self._texts), "count": self.count, **how}
