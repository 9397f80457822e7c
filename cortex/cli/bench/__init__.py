"""``cortex bench``: what an endpoint does under load, as a client sees it."""

from __future__ import annotations

from cortex.cli.bench.command import EXAMPLES, add_arguments, run

__all__ = ["EXAMPLES", "add_arguments", "run"]
