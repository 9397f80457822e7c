"""
What a gateway has for itself while it runs: its ports, and the files of what it learned.

Whatever of it another program has is said at once.  Two that wrote the files would each undo what
the other did.  Their lock is the kernel's, on a file beside them: it goes with the process, however
that ends, and a file that is left says nothing.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cortex.config.mistakes import Mistakes, cause
from cortex.config.schema import GatewaySection
from cortex.connection import check_free
from cortex.errors import ConfigError

SUFFIX = ".lock"
log = logging.getLogger(__name__)


@asynccontextmanager
async def claimed(section: GatewaySection, where: str) -> AsyncIterator[None]:
    """
    Have what *section* names for ourselves while inside.

    Args:
        section: What this gateway is to use.
        where: The file it is of.

    Raises:
        ConfigError: Another program has some of it; with all of that.
    """
    mistakes, file = Mistakes(), None
    with mistakes:
        check_free(section.listen, "--listen")
    with mistakes:
        check_free(section.metrics_listen, "--metrics-listen")
    with mistakes:
        file = None if section.state_path is None else _lock(section.state_path, where)
    try:
        mistakes.raise_any()
        yield
    finally:
        if file is not None:
            os.close(file)


def _lock(state_path: Path, where: str) -> int | None:
    """Return the file whose lock we have; None if there can be none, which is a warning."""
    path, file = state_path.with_suffix(SUFFIX), None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()} on {socket.gethostname()}\n".encode())
    except BlockingIOError:
        assert file is not None  # noqa: S101 - it is its lock that somebody has
        raise _in_use(state_path, where, file) from None
    except OSError as error:
        log.warning("%s: %s; another gateway may use the same files", path, cause(error, path))
    return file


def _in_use(state_path: Path, where: str, file: int) -> ConfigError:
    with os.fdopen(file, "rb") as said:
        process = said.read().decode().strip() or "unknown"
    return ConfigError(
        f"{where}: gateway.state_path: {state_path} is in use by another gateway, "
        f"process {process}",
        hint="stop it, or name another file",
    )
