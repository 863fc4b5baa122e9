"""Pruning engine: what of a map's output on the data the next map can do without."""
