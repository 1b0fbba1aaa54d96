"""Images → latent store."""
