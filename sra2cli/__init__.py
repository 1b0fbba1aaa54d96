"""sra2: train, sample and judge latent diffusion transformers with representation alignment."""

__version__ = "0.1.0"
