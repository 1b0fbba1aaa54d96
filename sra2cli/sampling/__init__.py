"""Network → images."""
