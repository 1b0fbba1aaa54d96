"""A run's network for others: a folder with its model card, and the hub."""
