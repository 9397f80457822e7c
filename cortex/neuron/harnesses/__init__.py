"""What runs models; each module is a built-in plugin."""
