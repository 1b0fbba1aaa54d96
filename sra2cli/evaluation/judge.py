"""The one judge: metrics of images, wherever they come from.

Three ask it: `sra2 eval` of images (evaluate), of a network (network_judge), and a training.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from sra2cli.config.checks import Natural
from sra2cli.config.reading import TypedDict
from sra2cli.core import console
from sra2cli.core.devices import kept_on
from sra2cli.core.environment import environment
from sra2cli.core.errors import SetupError
from sra2cli.evaluation import scores
from sra2cli.evaluation.caveats import caveats, of_prompts
from sra2cli.evaluation.extractors import Collected, Extractor, Wanted, features_of, side_by_side
from sra2cli.evaluation.image_sets import ImageSet, Seen
from sra2cli.evaluation.judging import Judging
from sra2cli.evaluation.metrics import IS_SPLIT, NEIGHBOURS
from sra2cli.evaluation.networks import NETWORKS, comparing, open_extractors
from sra2cli.evaluation.reference import (
    Reference,
    compared,
    describe,
    is_npz,
    lacking,
    open_reference,
    uncompared,
)


class Settings(TypedDict):
    """How it was judged."""

    metrics: list[str]


class Machine(TypedDict):
    """Where it was judged."""

    device: str
    git: str | None


class Result(TypedDict):
    """A result, as far as it is read back; beside it stand the numbers its metrics name."""

    metric: str
    count: Natural
    reference: str | None
    warnings: list[str]
    settings: Settings
    environment: Machine


class Judge:
    """Looks at images and says what they are worth.

    Args:
        first_stage: fingerprint of the first stage of what was trained; None: not known.
        statistics_alone: statistics are to be saved: metrics may be left out, or say of what
            network; what would be compared is not computed where there is no reference.
        prompts: of each image; None: there are none. later: they are known, and checked, later.

    Attributes:
        names: of the metrics. left_out: those that the reference has not enough for.
        extractor: the first network, and what compares with a reference, if anything does.
            beside: the others. comparing: those that compare. together: all of them.

    Raises:
        SetupError: no such metric, one that does not fit what was trained, no weights for it.
    """

    def __init__(
        self,
        judging: Judging,
        *,
        device: str,
        first_stage: str | None = None,
        statistics_alone: bool = False,
        prompts: Sequence[str] | None = None,
        later: bool = False,
    ):
        judging.check()
        device = str(kept_on(torch.device(device)))  # statistics are float64
        self.judging, self.device = judging, device
        names = choose(judging, first_stage, statistics_alone=statistics_alone)
        if not later:
            refuse_prompts(names, prompts)
        self.extractor, *self.beside = open_extractors(names, judging.opening(device))
        self.comparing = comparing(names, [self.extractor, *self.beside])
        lack = {} if judging.metric else lacking(judging.ref, self.comparing, names)
        self.left_out = list(lack)
        if statistics_alone and judging.ref is None and self.extractor.stand_in is None:
            names = tuple(name for name in names if name not in compared(names))
        self.names = tuple(name for name in names if name not in self.left_out)
        self.together = side_by_side(self.extractor, self.beside)

    @cached_property
    def reference(self) -> Reference | None:
        """What the metrics compare with; opened when it is first asked for."""
        judging = self.judging
        return open_reference(
            judging.ref, self.comparing, self.names, crop=judging.crop, batch=judging.batch
        )

    def needed(self, labels: list[int] | None) -> Wanted:
        """What to keep of the features; logits too, where accuracy can be told."""
        need = scores.wanted(self.names)
        if self.extractor.classifies and labels:
            return replace(need, rows=need.rows | {"logits"})
        return need

    def look(self, batches: Iterable[np.ndarray], labels: list[int] | None) -> Collected:
        """What is needed of images that come in uint8 batches (B, H, W, 3)."""
        return features_of(self.together, batches, self.needed(labels))

    def values(self, fake: Collected, prompts: Sequence[str] | None = None) -> dict[str, float]:
        """The metrics; prompts: of each image, for metrics that need them."""
        networks = {
            feature: extractor.fits
            for extractor in (self.extractor, *self.beside)
            if extractor.fits is not None
            for feature in extractor.widths
        }
        return scores.values(
            self.names,
            fake,
            self.reference.kept if self.reference else None,
            distances=self.judging.distances,
            device="cpu" if self.extractor.classifies else self.device,
            prompted=None if prompts is None else scores.Prompted(prompts, networks),
        )

    def result(
        self,
        images: ImageSet | Seen,
        fake: Collected,
        *,
        labels: list[int] | None,
        how: dict[str, Any] | None,
    ) -> dict[str, Any]:
        """The metrics, and all they depend on; warns of what would mislead.

        Args:
            how: what says how the images were made.
        """
        judging, names, real = self.judging, self.names, self.reference
        result = {
            "samples": images.name,
            "metric": ",".join(names),
            **self.values(fake, images.prompts),
            **self.told(),
            **record(images, self.extractor, real, fake, labels),
            **({"beside": [described(e) for e in self.beside]} if self.beside else {}),
            "settings": {
                "metrics": list(names),
                "crop": judging.crop and str(judging.crop),
                "batch": judging.batch,
                "is_split": IS_SPLIT,
                "neighbours": NEIGHBOURS,
                "dtypes": {
                    "features": "float32",
                    "statistics": "float64",
                    "distances": judging.distances,
                },
            },
            "warnings": self.warnings(images, fake, how or {}),
            "how": how,
            "environment": environment("cpu" if self.extractor.classifies else self.device),
        }
        for warning in result["warnings"]:
            console.warn(warning)
        return result

    def told(self) -> dict[str, Any]:
        """What stands beside numbers of prompts."""
        asked = {scores.METRICS[name].feature for name in scores.of_prompts(self.names)}
        networks = (self.extractor, *self.beside)
        return {k: v for e in networks if asked & e.widths.keys() for k, v in e.told.items()}

    def warnings(self, images: ImageSet | Seen, fake: Collected, how: dict[str, Any]) -> list[str]:
        """What would mislead."""
        found = caveats(
            self.names, self.comparing, images, fake, self.reference, left_out=self.left_out
        )
        readers = (self.extractor, *self.beside)
        return [*found, *of_prompts(images, readers, self.reference, how.get("crop"))]


def refuse_prompts(names: Sequence[str], prompts: Sequence[str] | None) -> None:
    """SetupError where metrics need prompts that are not there, or mean nothing for those."""
    need = scores.of_prompts(names)
    if prompts is None and need:
        raise SetupError(
            f"{', '.join(need)}: for images that were drawn of prompts, which these were not: draw "
            "with --prompt or --prompts, or leave it out of --metrics"
        )
    for name in need if prompts else ():
        means = scores.METRICS[name].means
        if means is not None and not any(map(means, prompts or ())):
            left = ",".join(other for other in names if other != name)
            raise SetupError(f"{name} means nothing for these prompts: --metrics {left or '…'}")


def choose(judging: Judging, first_stage: str | None, *, statistics_alone: bool) -> tuple[str, ...]:
    """The metrics asked for; by default those of the papers where there is a reference, and the
    network's own where what was trained is what it knows.

    () where statistics are to be saved and nothing else is asked for.

    Raises:
        SetupError: a metric that means nothing for what was trained, or nothing to compare with.
    """
    if judging.metric is not None:
        names = scores.parse(judging.metric)
        network = NETWORKS[scores.networks_of(names)[0]]
        if network.knows is not None and first_stage not in (None, network.knows):
            raise SetupError(
                f"{names[0]} knows {network.of} alone, which this was not trained on: "
                f"--metrics {','.join(scores.PAPERS)} with --ref, an .npz as ADM's, or images"
            )
        return names
    if judging.ref is not None and is_npz(judging.ref):
        return scores.PAPERS
    for network in NETWORKS.values():
        if network.knows is not None and network.knows == first_stage:
            return network.metrics
    if judging.ref is not None:
        return scores.PAPERS
    if statistics_alone:
        return ()
    raise uncompared(scores.PAPERS, "a folder of images; or --metrics is")


def described(extractor: Extractor) -> dict[str, Any]:
    """What results say of a network."""
    return {"name": extractor.name, "fingerprint": extractor.fingerprint, **extractor.about}


def record(
    images: ImageSet | Seen,
    extractor: Extractor,
    real: Reference | None,
    fake: Collected,
    labels: list[int] | None,
) -> dict[str, Any]:
    """What was compared with what, through which network."""
    result: dict[str, Any] = {
        "count": fake.count,
        "reference": real and real.about["name"],
        "reference_count": real and real.kept.count,
        "extractor": described(extractor),
        "samples_about": describe(images),
        "reference_about": real and real.about,
    }
    if labels and "logits" in fake.rows:
        asked = np.asarray(labels[: fake.count])
        predicted = fake.rows["logits"].argmax(dim=1).numpy()
        result["accuracy"] = float((predicted == asked).mean())
    return result
