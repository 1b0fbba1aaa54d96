"""Previews: grids of the EMA from fixed noise."""

import contextlib
from pathlib import Path

import numpy as np

from sra2cli.core import console, pictures
from sra2cli.core.errors import DataError, SetupError
from sra2cli.data.store_info import StoreInfo
from sra2cli.encoders.first_stage import FirstStage
from sra2cli.encoders.open import open_first_stage
from sra2cli.models.contract import Backbone
from sra2cli.runs.writer import RunWriter
from sra2cli.sampling.draw import draw
from sra2cli.sampling.settings import Sampling

PREVIEW = Sampling(solver="euler", steps=50, labels="balanced")


PREVIEWED = 16


class Previews:
    """Grids of the EMA from fixed noise: RUN/previews/step-00010000.png.

    A VAE that cannot be loaded is said once; the training goes on without.
    """

    def __init__(self, run: RunWriter, info: StoreInfo, *, device: str, offline: bool):
        self.folder = run.path / "previews"
        self.kind = run.recipe.path.kind
        self.info, self.device, self.offline = info, device, offline
        self._vae: FirstStage | None = None
        self._failed = False

    def draw(self, model: Backbone, step: int) -> Path | None:
        """Draw and save the grid of a step."""
        if self._vae is None and not self._failed:
            try:
                vae = open_first_stage(self.info.vae, device=self.device, offline=self.offline)
                vae.check_store(self.info, "this store")
                self._vae = vae
            except SetupError as error:
                console.warn(f"no previews: {error}")
                self._failed = True
        if self._vae is None:
            return None
        try:
            images = draw(model, self._vae, range(PREVIEWED), PREVIEW, kind=self.kind)
        except DataError as error:  # of a network that diverges: no reason to end a training
            console.warn(f"no preview of step {step}: {error}")
            return None
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"step-{step:08d}.png"
        scratch = path.with_name("." + path.name)
        with contextlib.suppress(FileNotFoundError):
            scratch.unlink()
        pictures.grid(list(np.asarray(images)), columns=4).save(scratch, format="png")
        scratch.replace(path)
        return path
