"""Bits for weights: the neutral store, the statistics that guide the choice, and the methods."""
