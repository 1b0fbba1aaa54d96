"""How images are drawn: the settings of sampling, and the papers' presets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sra2cli.config.settings import SOLVERS, Solver
from sra2cli.core.errors import SetupError
from sra2cli.data.class_names import numbered
from sra2cli.data.conditions import Asked, labels_of, listed_labels
from sra2cli.data.prompts import Prompts
from sra2cli.encoders.first_stage import Rounding
from sra2cli.models.contract import Shape

DrawPrecision = Literal["fp32", "tf32", "bf16", "fp16"]
SELF_INTERVAL = (0.1, 1.0)


@dataclass(frozen=True)
class Sampling:
    """How images are drawn; recorded beside every result.

    Args:
        steps: evaluations of the velocity (heun and edm: 2 * steps - 1).
        last_step: of Euler-Maruyama, noise-free.
        shift: of the times of euler and heun, see `samplers.shifted`; 1.0 is none.
        cfg: guidance scale, 1.0 is none; interval: times in which it applies.
        cfg_channels: guide the first n latent channels only; None: all.
        class_cfg: guidance scale of a class token (REG); 0: none; None: as the latent.
        self_guidance: scale of guidance by a head of the network's own, 1.0 is none;
            self_interval: times in which it applies, from above 0.
        labels: "random", "balanced" (0, 1, 2, … in turn), or class numbers to walk through; names
            of classes only until `of_classes`.
        prompts: texts, for a network that is told captions.
    """

    solver: Solver = "em"
    steps: int = 250
    last_step: float = 0.04
    shift: float = 1.0
    cfg: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    cfg_channels: int | None = None
    class_cfg: float | None = None
    self_guidance: float = 1.0
    self_interval: tuple[float, float] = SELF_INTERVAL
    labels: str = "random"
    seed: int = 0
    rounding: Rounding = "truncate"
    prompts: Prompts | None = None

    def asked(self, indices: Sequence[int]) -> Asked:
        """What the images with these numbers are asked to be of."""
        return Asked(self.labels, self.seed, indices, self.prompts)

    def labels_of(self, indices: Sequence[int], shape: Shape) -> list[int] | None:
        """The label of each image; None for an unconditional model."""
        return labels_of(indices, self.labels, self.seed, shape.classes)

    def of_classes(self, names: Sequence[str], shape: Shape) -> "Sampling":
        """The same with numbers where `labels` has names of a network's classes."""
        if not shape.classes:
            return self
        return replace(self, labels=numbered(self.labels, names, shape.classes))

    def to_dict(self) -> dict[str, Any]:
        """As it is recorded; without what was not asked for, so that older records fit."""
        values = {**vars(self), "interval": list(self.interval)}
        values["self_interval"] = list(self.self_interval)
        if self.prompts is not None:
            values["prompts"] = self.prompts.about
        later = {"shift": 1.0, "class_cfg": None, "prompts": None, "self_guidance": 1.0}
        if self.self_guidance == 1.0:
            del values["self_interval"]
        return {k: v for k, v in values.items() if k not in later or v != later[k]}

    def check(self, shape: Shape) -> None:
        """Raise SetupError for settings that mean nothing for a network of this shape."""
        if self.solver not in SOLVERS:
            raise SetupError(f"--solver is one of {', '.join(SOLVERS)}, not '{self.solver}'")
        if self.steps < 1 or (self.solver in ("em", "edm") and self.steps < 2):
            raise SetupError(f"--steps {self.steps} is too few for solver {self.solver}")
        if not 0 < self.last_step < 1:
            raise SetupError("--last-step lies between 0 and 1")
        if not math.isfinite(self.shift) or self.shift <= 0:
            raise SetupError(f"--shift is a number above 0, not {self.shift:g}")
        if self.shift != 1.0 and self.solver not in ("euler", "heun"):
            raise SetupError("--shift is for the solvers euler and heun")
        if not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise SetupError("--interval is a:b with 0 <= a < b <= 1")
        if not math.isfinite(self.cfg) or self.cfg < 0:
            raise SetupError(f"--cfg is a number from 0, not {self.cfg:g}")
        if self.cfg_channels is not None and self.cfg_channels < 1:
            raise SetupError("--cfg-channels must be above 0")
        if self.class_cfg is not None and not shape.class_width:
            raise SetupError("--class-cfg is for networks with a class token (REG)")
        if self.class_cfg is not None and not (
            math.isfinite(self.class_cfg) and self.class_cfg >= 0
        ):
            raise SetupError(f"--class-cfg is a number from 0, not {self.class_cfg:g}")
        if self.class_cfg is not None and self.cfg == 1.0:
            raise SetupError("--class-cfg needs guidance of the latent: --cfg above 1")
        if self.cfg != 1.0 and not shape.conditional:
            raise SetupError("--cfg needs a class-conditional model; this one has no classes")
        self.check_own()
        if self.prompts is not None and shape.condition != "text":
            raise SetupError("--prompt is for networks that are told captions; this one is not")
        if self.prompts is None and shape.condition == "text":
            raise SetupError(
                "this network is told captions: give --prompt TEXT, or --prompts FILE|STORE"
            )
        if self.prompts is not None and self.prompts.negative is not None and self.cfg == 1.0:
            raise SetupError("--negative-prompt needs guidance: --cfg above 1")
        if shape.condition == "text":
            if self.labels != "random":
                raise SetupError("--labels is for networks with classes; this one is told captions")
            return
        listed_labels(self.labels, shape.classes)

    def check_own(self) -> None:
        """Of guidance by a head."""
        if not math.isfinite(self.self_guidance) or self.self_guidance < 0:
            raise SetupError(f"--self-guidance is a number from 0, not {self.self_guidance:g}")
        if not 0 < self.self_interval[0] < self.self_interval[1] <= 1:
            raise SetupError("--self-interval is a:b with 0 < a < b <= 1")
        if self.self_guidance == 1.0 and self.self_interval != SELF_INTERVAL:
            raise SetupError("--self-interval needs --self-guidance other than 1")


PAPER = {"solver": "em", "steps": 250, "last_step": 0.04}
LIGHTNING = {"solver": "euler", "steps": 249, "shift": 1 / 0.3, "cfg_channels": 3}


PRESETS: dict[str, dict[str, Any]] = {  # what guided numbers are reported with
    "sra2": {**PAPER, "cfg": 1.8, "interval": (0.0, 0.7)},
    "repa": {**PAPER, "cfg": 1.8, "interval": (0.0, 0.7)},
    "reg": {**PAPER, "cfg": 2.3, "interval": (0.0, 0.85)},
    "internal": {**PAPER, "cfg": 1.35, "interval": (0.0, 0.7), "self_guidance": 1.4},
    "maskdit": {"solver": "edm", "steps": 40, "cfg": 1.5},
    "sit": {**PAPER, "cfg": 1.5, "cfg_channels": 3},
    "lightningdit-64ep": {**LIGHTNING, "cfg": 10.0, "interval": (0.0, 0.89)},
    "lightningdit": {**LIGHTNING, "cfg": 6.7, "interval": (0.0, 0.875)},  # of 800 epochs
    "t2i": {**PAPER, "cfg": 2.0},  # Table 4, whose solver is not said
    "emoji": {"solver": "euler", "steps": 20, "cfg": 2.5},
    "emoji-class": {"solver": "euler", "steps": 25, "labels": "balanced"},
    "digits": {"solver": "euler", "steps": 25, "labels": "balanced"},  # as fd-digits is defined
}


def chosen(preset: str | None, **given: Any) -> Sampling:
    """A preset with what was given beside it; None: not given.

    Raises:
        SetupError: no such preset.
    """
    if preset is not None and preset not in PRESETS:
        raise SetupError(f"--preset is one of {', '.join(PRESETS)}, not '{preset}'")
    said = {name: value for name, value in given.items() if value is not None}
    return Sampling(**{**PRESETS.get(preset or "", {}), **said})
