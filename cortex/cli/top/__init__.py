"""``cortex top``: the fleet, live, in a terminal; a client of the HTTP API and nothing else."""

from __future__ import annotations

from cortex.cli.top.command import EXAMPLES, add_arguments, run

__all__ = ["EXAMPLES", "add_arguments", "run"]
