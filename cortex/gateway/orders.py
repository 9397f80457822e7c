"""
What operators have pinned and drained, kept in a small file across restarts.

What the configuration says is not in it: a pin of ``models.toml`` goes when the file says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from cortex.config.mistakes import cause
from cortex.gateway.catalogue import Names
from cortex.gateway.nodes import Nodes
from cortex.gateway.sizes import put

SUFFIX = ".orders.json"
log = logging.getLogger(__name__)


class Given(msgspec.Struct, frozen=True):
    """The file."""

    pins: Mapping[str, tuple[str, ...]] = {}
    drained: tuple[str, ...] = ()


class Orders:
    """
    The file beside that at *state_path*; None keeps nothing.

    A file that cannot be read, or written, is a warning, and the gateway goes on without.
    """

    def __init__(self, state_path: Path | None, names: Names, nodes: Nodes) -> None:
        self._path = None if state_path is None else state_path.with_suffix(SUFFIX)
        self._names = names
        self._nodes = nodes
        self._written = Given()
        self._one = asyncio.Lock()  # of those who write

    def restore(self) -> None:
        """Give again what was ordered, where the nodes are still part of the fleet."""
        if self._path is None:
            return
        try:
            given = msgspec.json.decode(self._path.read_bytes(), type=Given)
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError) as error:
            log.warning(
                "%s: %s; pins and drains by hand are forgotten",
                self._path,
                cause(error, self._path),
            )
            return
        self._written = given
        self._names.restore(given.pins)
        for name in given.drained:
            if (node := self._nodes.get(name)) is not None:
                self._nodes.drain(node, True)

    async def keep(self) -> None:
        """Write what is ordered now, if it is not what is written; whole or not at all."""
        if self._path is None:
            return
        async with self._one:  # a disk answers, or nothing does
            drained = tuple(node.name for node in self._nodes if node.drained)
            now = Given(dict(self._names.by_hand), drained)
            if now == self._written:
                return
            try:
                await asyncio.to_thread(put, self._path, msgspec.json.encode(now))
                self._written = now
            except OSError as error:
                log.warning(
                    "%s: %s; a restart forgets pins and drains",
                    self._path,
                    cause(error, self._path),
                )
