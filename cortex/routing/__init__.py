"""Routing strategies; each module is a built-in plugin."""
