"""What encoding in half precision costs: latents beside those of fp32."""

import numpy as np
import torch

from sra2cli.core import console
from sra2cli.encoders.open import open_first_stage
from sra2cli.extraction.encode import Job, first_images


def say_error(job: Job) -> float | None:
    """Encode the first images in fp32 too, and say how far their latents are off; None: they are
    in fp32, or imported.

    Returns:
        The root of the mean squared difference of posterior means, over their deviation.
    """
    options = job.options
    if options.precision == "fp32" or job.source.kind != "images":
        return None
    images = first_images(job)
    batch = torch.from_numpy(np.resize(images, (job.info.encode_batch, *images.shape[1:])))
    full = open_first_stage(options.vae, device=str(job.vae.device), offline=options.offline)
    half, exact = (v.encode(batch)[: len(images)].chunk(2, dim=1)[0] for v in (job.vae, full))
    error = float((half - exact).square().mean().sqrt() / exact.std())
    console.say(
        f"{options.precision}: the latents of the first {len(images)} images are off by "
        f"{error:.2%} of their deviation, beside fp32"
    )
    return error
