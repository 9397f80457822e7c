"""Weights on this host's disk: what there is, who uses it, and how it goes."""
