"""sra2: training, sampling and judging latent diffusion transformers with aligned representations.

from sra2cli import load_model        # SiT, REPA, SRA and our own checkpoints → our network
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    if name == "load_model":  # imports torch, which `sra2 --help` must not
        from sra2cli.models.checkpoints import load_model

        return load_model
    raise AttributeError(f"module 'sra2cli' has no attribute '{name}'")
