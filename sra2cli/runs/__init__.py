"""The run folder: reading, writing, and the networks in it."""
