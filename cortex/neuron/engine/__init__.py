"""The torch engine: runs in a device worker process of its own; no event loop, no HTTP."""
