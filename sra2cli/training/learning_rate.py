"""The learning rate as a function of the step."""

import math

from sra2cli.config.settings import Train


def learning_rate(settings: Train, step: int) -> float:
    """Of the update that makes step + 1: up over `lr_warmup` steps, then constant, or down to 0 at
    the last step along half a cosine."""
    rate, warmup = settings.lr, settings.lr_warmup
    if step < warmup:
        return rate * (step + 1) / warmup
    if settings.lr_decay == "cosine":
        done = (step - warmup) / max(1, settings.steps - warmup)
        return rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return rate
