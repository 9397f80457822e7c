"""
Holds a folder of weights: while anybody does, `cortex cache prune` leaves it alone.

A lock of the kernel's on the folder itself, shared by all who hold it: it goes with the process,
however that ends, and needs no file, no port and no list.  Where a file system has no such locks
nothing is held, and nothing is pruned.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)


class Hold:
    """
    A folder held until `release`, or the process's end.

    Args:
        folder: Where.
        alone: Nobody else may hold it.

    Raises:
        BlockingIOError: Somebody does.
        OSError: It is not there, or cannot be locked.
    """

    def __init__(self, folder: Path, *, alone: bool = False) -> None:
        self._handle: int | None = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Let go; again is nothing."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.release()


def hold(weights: Path) -> Hold | None:
    """
    Hold the folder of a checkpoint, which is one or is in one, and note that it is used now.

    Returns:
        None if that cannot be: what may be read need not be held.
    """
    folder = weights if weights.is_dir() else weights.parent
    try:
        held = Hold(folder)
    except OSError as error:
        log.debug("%s is not held: %s", folder, error)
        return None
    for file in folder.iterdir() if folder is weights else (weights,):
        with suppress(OSError):  # it is somebody else's
            os.utime(file, (time.time(), file.stat().st_mtime))  # many disks are mounted noatime
    return held
