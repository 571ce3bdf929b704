"""Torch definitions of the models that Tapeout ships: vision tower, language model, and the two joined."""
