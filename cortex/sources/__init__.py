"""Where weights come from; each module is a built-in plugin."""
