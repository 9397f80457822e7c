"""Images of requests, on their way to what a model sees; only here Pillow is imported."""
