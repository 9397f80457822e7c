"""
Kernels that begin before the one before them has ended, CUDA's programmatic dependent launch.

A kernel lets the next one begin as soon as all its own programs have, and waits for the one before
it where it first needs what that makes.  Whatever it reads before was not made by a step: weights.
It waits in every program, for who waits for it counts on that: all that was launched before is
done.  GPUs before Hopper cannot; nothing of this is compiled for them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

OVERLAPS = tl.constexpr(
    torch.version.cuda is not None
    and torch.cuda.is_available()
    and torch.cuda.get_device_capability() >= (9, 0)
)
LAUNCH = {"launch_pdl": True} if OVERLAPS else {}  # a kernel that waits is launched with


@triton.jit
def let_next_begin():
    """Let the next kernel begin, once all programs of this one have come here."""
    if OVERLAPS:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_last():
    """Wait until all kernels before this one are done, and what they wrote is there."""
    if OVERLAPS:
        tl.extra.cuda.gdc_wait()
