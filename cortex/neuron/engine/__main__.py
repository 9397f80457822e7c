"""Starts a device worker; see `cortex.neuron.engine.worker`."""

from __future__ import annotations

from cortex.neuron.engine.worker import main

if __name__ == "__main__":
    main()
