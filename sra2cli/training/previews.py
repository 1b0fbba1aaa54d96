"""Previews: grids of the EMA from fixed noise."""

import contextlib
from dataclasses import replace
from pathlib import Path

from sra2cli.config.settings import Train
from sra2cli.core import console, pictures
from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.class_names import names_of
from sra2cli.data.prompts import told_in
from sra2cli.data.store import Store
from sra2cli.encoders.first_stage import FirstStage
from sra2cli.encoders.open import open_first_stage
from sra2cli.models.build import shape_of
from sra2cli.models.contract import Backbone
from sra2cli.runs.writer import RunWriter
from sra2cli.sampling.draw import draw
from sra2cli.sampling.settings import DrawPrecision, Sampling

PREVIEW = Sampling(solver="euler", steps=50, labels="balanced")
PREVIEWED = 16
GUIDED = 2.0  # guidance of captions, without which small networks show little of them


def drawn_in(settings: Train) -> DrawPrecision:
    """The precision of what is drawn while training: that of its own passes."""
    if settings.precision == "bf16" or settings.precision == "fp16":
        return settings.precision
    return "tf32" if settings.tf32 else "fp32"


class Previews:
    """Grids of the EMA from fixed noise: RUN/previews/step-00010000.png.

    Of classes in turn, or of captions that are spread evenly over the store. A VAE or text encoder
    that cannot be loaded is said once; the training goes on without.
    """

    def __init__(self, run: RunWriter, store: Store, *, device: str, offline: bool):
        self.folder = run.path / "previews"
        self.kind, self.precision = run.recipe.path.kind, drawn_in(run.recipe.train)
        self.store, self.device, self.offline = store, device, offline
        self.told = shape_of(run.recipe).condition == "text"
        self._opened: tuple[FirstStage, Sampling] | None = None
        self._failed = False

    def _open(self) -> tuple[FirstStage, Sampling]:
        """What decodes, and how images are drawn."""
        vae = open_first_stage(self.store.info.vae, device=self.device, offline=self.offline)
        vae.check_store(self.store.info, "this store")
        if not self.told:
            return vae, PREVIEW
        prompts = told_in(self.store, device=self.device, offline=self.offline, spread=PREVIEWED)
        return vae, replace(PREVIEW, labels="random", cfg=GUIDED, prompts=prompts)

    def draw(self, model: Backbone, step: int) -> Path | None:
        """Draw and save the grid of a step."""
        if self._opened is None and not self._failed:
            try:
                self._opened = self._open()
            except SetupError as error:
                console.warn(f"no previews: {error}")
                self._failed = True
        if self._opened is None:
            return None
        vae, sampling = self._opened
        try:
            drawn = draw(
                model, vae, range(PREVIEWED), sampling, kind=self.kind, precision=self.precision
            )
        except DataError as error:  # of a network that diverges: no reason to end a training
            console.warn(f"no preview of step {step}: {error}")
            return None
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"step-{step:08d}.png"
        scratch = path.with_name("." + path.name)
        with contextlib.suppress(FileNotFoundError):
            scratch.unlink()
        sheet = pictures.sheet(list(drawn), self._captions(model, sampling), columns=4)
        sheet.save(scratch, format="png")
        scratch.replace(path)
        return path

    def _captions(self, model: Backbone, sampling: Sampling) -> list[str] | None:
        """Prompts, or the names of classes as far as the store says them."""
        if sampling.prompts is not None:
            return sampling.prompts.texts(range(PREVIEWED), sampling.seed)
        labels, names = (
            sampling.labels_of(range(PREVIEWED), model.shape),
            self.store.info.class_names,
        )
        return names_of(labels, names) if labels and names else None
