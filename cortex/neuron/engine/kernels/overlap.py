"""
Kernels that begin before the ones they depend on have ended (programmatic dependent launch).

Such a kernel lets the next one begin at once, does what depends on nothing, such as fetching
weights, and then waits for all before it.  Each has to wait, or the one behind it could be early.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

LEAST_CAPABILITY = (9, 0)


@triton.jit
def wait_for_others(OVERLAPS: tl.constexpr):
    if OVERLAPS:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def fetch(address):
    """Ask for what is at some addresses to be brought into the cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [address], tl.int32, False, 1
    )


@functools.cache
def options(device: torch.device) -> dict[str, bool]:
    """Return what a kernel is to be launched with on a device."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return {"OVERLAPS": False}
    return {"OVERLAPS": True, "launch_pdl": True}
