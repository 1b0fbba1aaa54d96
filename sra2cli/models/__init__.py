"""Backbones behind one contract, their layers, EMA and checkpoints."""
