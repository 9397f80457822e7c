"""
Kernels that begin before the one before them has ended, CUDA's programmatic dependent launch.

A kernel lets the next one begin as soon as all its own programs have, and waits for the one before
it where it first needs what that makes.  Whatever it reads before was not made by a step: weights.
It waits in every program, for who waits for it counts on that: all that was launched before is
done.  GPUs before Hopper cannot, nor drivers before 12.4 in a graph; nothing of this is compiled
for them.
"""

from __future__ import annotations

import pynvml
import torch
import triton
import triton.language as tl

HOPPER = (9, 0)
DRIVER = 12040  # CUDA 12.4


def can_overlap() -> bool:
    """Tell whether the GPU of this process can, and its driver."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return False
    try:
        pynvml.nvmlInit()
        is_recent = pynvml.nvmlSystemGetCudaDriverVersion_v2() >= DRIVER
    except pynvml.NVMLError:
        return False
    return bool(is_recent and torch.cuda.get_device_capability() >= HOPPER)


OVERLAPS = tl.constexpr(can_overlap())
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
