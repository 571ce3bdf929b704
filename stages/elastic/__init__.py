"""Subnets of a model that share its weights: which there are, how they are cut out, how they are trained together."""
