"""Eviction policies; each module is a built-in plugin."""
