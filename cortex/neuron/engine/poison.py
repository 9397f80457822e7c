"""What leaves a device's context beyond use, and how that is practised."""

from __future__ import annotations

import torch

from cortex.errors import CortexError, InsufficientVram
from cortex.neuron.engine.jobs import Lost


class GroupBroken(RuntimeError):
    """The ranks of a group do no longer do the same."""


def is_poison(error: BaseException) -> bool:
    """Tell whether *error* leaves the device's context beyond use."""
    if isinstance(error, GroupBroken):
        return True
    said = str(error)
    if "captur" in said:  # it was not even begun
        return False
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in said


def lost(request: str, error: Exception) -> Lost:
    """Return the end of a request that failed by *error*; raises that if the device is lost too."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        message = f"the device has too little memory for it: {error}"
        return Lost(id=request, message=message, code=InsufficientVram.code)
    if isinstance(error, CortexError):
        return Lost(id=request, message=error.message, code=error.code)
    if is_poison(error):
        raise error
    return Lost(id=request, message=f"{type(error).__name__}: {error}")


def inject(fault: str | None) -> None:
    """Raise what a device would, if this is one of `cortex.neuron.engine.jobs.FAULTS`."""
    if fault == "oom":
        raise torch.OutOfMemoryError("a drill")
    if fault == "poison":
        raise RuntimeError("CUDA error: a drill")
