"""The path, samplers and guidance, for states of any shape."""
