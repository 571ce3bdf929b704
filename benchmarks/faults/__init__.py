"""Models that are damaged on purpose."""
