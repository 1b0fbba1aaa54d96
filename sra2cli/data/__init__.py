"""Images, sources, latent stores, training batches."""
