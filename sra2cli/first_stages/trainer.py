"""The state of one training of a first stage, and one step of it.

A step is a function of (seed, step, index in the batch): images, mirroring and the draw from the
posterior come from `core.clock`, so that a training that was killed goes on as if it never was.
"""

import copy
import math
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sra2cli.core import clock
from sra2cli.core.clock import Purpose, Scalar
from sra2cli.core.errors import DataError
from sra2cli.encoders.image import Encoder, load_encoder
from sra2cli.encoders.vae import Vae, new_autoencoder
from sra2cli.first_stages.losses import losses
from sra2cli.first_stages.settings import GROUPS, VaeSettings

PATCH = 16  # pixels of an image for a patch of the encoder: 224 of 14 for 256, as REPA
CLIP = 1.0  # norm that gradients are cut to


class Trainer:
    """Network, optimiser, rates, step, and the sums towards the next row of metrics.

    Args:
        images: to train on, (N, R, R, 3) uint8.
        encoder: of the perceptual term; None: there is none.
    """

    def __init__(
        self, wanted: VaeSettings, images: np.ndarray, *, device: str, encoder: Encoder | None
    ):
        self.wanted, self.device, self.encoder = wanted, torch.device(device), encoder
        self.images = torch.from_numpy(images)
        model = initial(wanted).to(
            self.device, memory_format=torch.channels_last
        )  # a fourth faster
        self.model = model.train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=wanted.lr, weight_decay=0.0)
        rising = wanted.warmup if wanted.warmup * wanted.steps > 1 else 0.0  # of one step: none
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, wanted.lr, wanted.steps, pct_start=rising
        )
        self.step, self.seconds, self._begun = 0, 0.0, time.monotonic()
        self.sums: dict[str, Tensor] = {}

    def batch(self) -> tuple[Tensor, Tensor]:
        """Images (B, 3, R, R) in -1..1 and normals (B, C, h, w) of this step."""
        seed, step, size = self.wanted.seed, self.step, self.wanted.batch
        rows = clock.positions(seed, step, size, range(size), len(self.images))
        x = self.images[torch.from_numpy(rows)].to(self.device).permute(0, 3, 1, 2).float()
        x = x / 127.5 - 1
        if self.wanted.flip:
            drawn = clock.scalars(seed, step, range(size))[:, Scalar.MIRROR] < 0.5
            mirrored = torch.from_numpy(drawn).to(self.device).view(-1, 1, 1, 1)
            x = torch.where(mirrored, x.flip(-1), x)
        xi = clock.normals(seed, Purpose.POSTERIOR, step, range(size), self.wanted.latent)
        x = x.contiguous(memory_format=torch.channels_last)
        return x, torch.from_numpy(xi).to(self.device)

    def update(self) -> None:
        """One step."""
        x, xi = self.batch()
        posterior = self.model.encode(x).latent_dist
        output = self.model.decode(posterior.mean + posterior.std * xi).sample
        found = losses(self.wanted, output, x, posterior, self.encoder)
        self.optimizer.zero_grad(set_to_none=True)
        found["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        for name, value in {**found, "grad_norm": norm, "steps": torch.ones(())}.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()

    def row(self) -> dict[str, float]:
        """Means since the last row, and images a second.

        Raises:
            DataError: a loss or gradient was not finite.
        """
        sums = {name: float(value) for name, value in self.sums.items()}
        self.sums, steps = {}, sums.pop("steps")
        taken = time.monotonic() - self._begun
        self.seconds += taken
        self.rest()
        if not math.isfinite(sums["loss"] + sums["grad_norm"]):
            raise DataError(
                f"the loss or its gradient is not finite before step {self.step}; what was saved "
                "is good. Try a smaller --lr in a new --out"
            )
        means = {name: value / steps for name, value in sums.items()}
        rate = steps * self.wanted.batch / max(taken, 1e-9)
        return {"step": self.step, **means, "images_per_second": rate}

    def rest(self) -> None:
        """What was done since the last row is no training."""
        self._begun = time.monotonic()

    def judged(self) -> Vae:
        """The network as it is now, as others open it."""
        return Vae("this first stage", copy.deepcopy(self.model), self.device)

    def state(self) -> dict[str, Any]:
        """What going on needs."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load(self, state: dict[str, Any], of: str) -> None:
        """Go on from a state; DataError where it does not fit."""
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise DataError(f"{of} does not fit: {reason}; remove it to start again") from None
        self.step, self.seconds = int(state["step"]), float(state["seconds"])


def initial(wanted: VaeSettings) -> Any:
    """The network with the initial weights of its seed; torch's own generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(clock.torch_seed(wanted.seed))
        return new_autoencoder(
            resolution=wanted.resolution,
            widths=wanted.widths,
            layers=wanted.layers,
            channels=wanted.channels,
            groups=GROUPS,
        )


def encoder_of(wanted: VaeSettings, *, device: str, offline: bool) -> Encoder | None:
    """The image encoder of the perceptual term, if there is one."""
    if wanted.features is None:
        return None
    side = max(4, wanted.resolution // PATCH)
    return load_encoder(wanted.features, side=side, device=device, offline=offline)
