"""API dialects; each module is a built-in plugin."""
