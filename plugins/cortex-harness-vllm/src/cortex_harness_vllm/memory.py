"""What the processes of a session take of this host's devices; asks the driver, never CUDA."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def used_bytes(session: int, devices: Sequence[int], *, kind: str) -> int:
    """
    Return the memory a session's processes hold; 0 if nobody can say.

    Blocks for milliseconds.

    Args:
        session: Its id.
        devices: Indices of GPUs as the driver counts them.
        kind: Of the devices; ``cpu`` is the memory of the host.
    """
    if kind == "cpu":
        return sum(map(resident_bytes, members(session)))
    import pynvml

    total = 0
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        for index in devices:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
                if is_in(process.pid, session):
                    total += process.usedGpuMemory or 0  # None where the driver hides it
    return total


def members(session: int) -> Iterable[int]:
    """Return the processes of a session."""
    pids = (int(name.name) for name in Path("/proc").iterdir() if name.name.isdecimal())
    return [pid for pid in pids if is_in(pid, session)]


def is_in(pid: int, session: int) -> bool:
    """Tell whether a process is one of a session."""
    try:
        return os.getsid(pid) == session
    except (ProcessLookupError, PermissionError):
        return False


def resident_bytes(pid: int) -> int:
    """Return the memory of one process, with its part of mapped files."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except OSError:
        return 0
