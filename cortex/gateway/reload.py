"""
Reads the configuration again while the gateway serves: all of it, or nothing.

What a bad file says is refused with its key path, and the old configuration stays.  What only a
restart can change is named, and stays too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import attrs

from cortex.config.diff import Change, changes
from cortex.config.schema import Catalogue, GatewayConfig
from cortex.errors import ConfigError, ReloadRefused
from cortex.events import Events
from cortex.systemd import Service

LIVE = ("routing", "eviction", "queue", "auth", "neurons", "upstreams")
LIVE_KEYS = ("drain_s", "models_config")  # of [gateway]
Read = Callable[[], tuple[GatewayConfig, Catalogue]]
log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Difference:
    """
    What a reload found.

    Attributes:
        changed: What is in force now.
        restart: What the files say and only a restart can change.
    """

    changed: tuple[Change, ...]
    restart: tuple[Change, ...]


class Reload:
    """
    Reloads one at a time.

    Args:
        read: Reads the files, blocking.
        current: Returns the configuration in force.
        adopt: Puts a configuration in force, whole or not at all.
        service: Who is told.
        events: Who else.
    """

    def __init__(
        self,
        read: Read,
        current: Read,
        adopt: Callable[[GatewayConfig, Catalogue], Awaitable[None]],
        service: Service,
        events: Events,
    ) -> None:
        self._read = read
        self.current = current
        self._adopt = adopt
        self._service = service
        self._events = events
        self._one = asyncio.Lock()

    async def run(self) -> Difference:
        """
        Read the files, and put in force what differs from what is.

        Raises:
            ReloadRefused: The files cannot be used; nothing has changed.
        """
        async with self._one:
            self._service.reloading()
            try:
                return await self._run()
            except ConfigError as error:
                log.warning("reload refused: %s", error)
                raise ReloadRefused(str(error)) from None
            except Exception as error:
                log.exception("reload failed")
                raise ReloadRefused(f"{type(error).__name__}: {error}") from None
            finally:
                self._service.ready("serving")

    async def _run(self) -> Difference:
        read, models = await asyncio.to_thread(self._read)
        config, catalogue = self.current()
        live = with_live(config, read)
        await self._adopt(live, models)
        found = Difference(
            changed=(*changes(config, live), *changes(catalogue, models)),
            restart=tuple(changes(live, read)),
        )
        for change in found.changed:
            log.info("reload: %s: %s, was %s", change.key, change.now, change.was)
        for change in found.restart:
            log.warning("reload: %s stays %s until a restart", change.key, change.was)
        self._events.publish("reload", found)
        return found


def with_live(config: GatewayConfig, read: GatewayConfig) -> GatewayConfig:
    """Return *config* with what *read* says of what can change at run time."""
    gateway: dict[str, Any] = {key: getattr(read.gateway, key) for key in LIVE_KEYS}
    sections = {name: getattr(read, name) for name in LIVE}
    return attrs.evolve(config, gateway=attrs.evolve(config.gateway, **gateway), **sections)
