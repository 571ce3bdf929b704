"""From the captured graph to each runtime: one table of operators a target."""
