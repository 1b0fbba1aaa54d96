"""Recipe and store → run."""
