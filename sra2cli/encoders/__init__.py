"""Frozen networks: first stages and image encoders."""
