"""How long work takes on a GPU, and where its time goes."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

KERNELS = 12


def seconds(device: torch.device, work: Callable[[], object], count: int) -> float:
    """Return how long *work* takes on the device."""
    work()
    if device.type == "cpu":
        clock = time.perf_counter()
        for _ in range(count):
            work()
        return (time.perf_counter() - clock) / count
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    began.record()
    for _ in range(count):
        work()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1e3 / count


def longest(work: Callable[[], object], count: int = 10) -> list[str]:
    """Return which kernels of *work* take longest on the device, in microseconds."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    work()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        for _ in range(count):
            work()
        torch.cuda.synchronize()
    found = sorted(profile.key_averages(), key=lambda each: -each.device_time_total)
    return [
        f"{each.device_time_total / count:8.1f} us in {each.count / count:5.0f}: {each.key[:80]}"
        for each in found[:KERNELS]
    ]
