"""
What this host has: GPUs through NVML, never through CUDA, else its CPU as one device.

NVML answers without a CUDA context; a context belongs to a device worker alone.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from cortex import __version__
from cortex.config.load import environment
from cortex.fleet.node import Device, DeviceInfo, Discovery

MIB = 1 << 20


@attrs.frozen(kw_only=True)
class Host:
    """The host as it was found at start."""

    discovery: Discovery
    devices: tuple[Device, ...]


def discover() -> Host:
    """Look at the host; takes up to a second where a driver has to wake."""
    found: dict[str, Any]
    try:
        found = _nvml()
    except Exception as error:  # noqa: BLE001 - no library, no driver, no permission: all mean no GPU
        found = {"reason": f"{type(error).__name__}: {error}"}
    devices = found.get("devices") or (read_cpu(_cpu_name()),)
    discovery = Discovery(
        hostname=platform.node(),
        os=_os_name(),
        kernel=platform.release(),
        version=__version__,
        cuda_version=found.get("cuda_version"),
        driver_version=found.get("driver_version"),
        devices=tuple(
            DeviceInfo(
                index=device.index,
                name=device.name,
                vram_total_mb=device.vram_total_mb,
                compute_capability=found.get("capabilities", {}).get(device.index),
            )
            for device in devices
        ),
        cuda_unavailable_reason=found.get("reason"),
    )
    return Host(discovery=discovery, devices=tuple(devices))


def read(devices: Sequence[Device]) -> tuple[Device, ...]:
    """Return the devices with their memory, load and temperature now; blocks for milliseconds."""
    return tuple(
        read_gpu(d.index) if d.kind == "cuda" else attrs.evolve(read_cpu(d.name), index=d.index)
        for d in devices
    )


def read_cpu(name: str) -> Device:
    """Return the host's CPU, called *name*, and its memory as a device."""
    memory = {"MemTotal": 0, "MemAvailable": 0}
    for line in Path("/proc/meminfo").read_text().splitlines():
        field, _, rest = line.partition(":")
        if field in memory:
            memory[field] = int(rest.split()[0]) >> 10  # kB
    total, free = memory["MemTotal"], memory["MemAvailable"]
    return Device(
        index=0,
        kind="cpu",
        name=name,
        vram_total_mb=total,
        vram_used_mb=total - free,
        vram_free_mb=free,
        utilization_pct=round(min(100.0, 100 * os.getloadavg()[0] / (os.cpu_count() or 1)), 1),
    )


def read_gpu(index: int) -> Device:
    """Return one GPU as NVML sees it now."""
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Device(
        index=index,
        kind="cuda",
        name=pynvml.nvmlDeviceGetName(handle),
        vram_total_mb=memory.total // MIB,
        vram_used_mb=memory.used // MIB,
        vram_free_mb=memory.free // MIB,
        utilization_pct=_or_none(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        temp_c=_or_none(
            lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
        ),
    )


def _nvml() -> dict[str, Any]:
    import pynvml

    pynvml.nvmlInit()
    indices = _visible(range(pynvml.nvmlDeviceGetCount()))
    version = pynvml.nvmlSystemGetCudaDriverVersion_v2()
    capabilities = {
        index: "{}.{}".format(
            *pynvml.nvmlDeviceGetCudaComputeCapability(pynvml.nvmlDeviceGetHandleByIndex(index))
        )
        for index in indices
    }
    return {
        "devices": tuple(read_gpu(index) for index in indices),
        "capabilities": capabilities,
        "driver_version": pynvml.nvmlSystemGetDriverVersion(),
        "cuda_version": f"{version // 1000}.{version % 1000 // 10}",
        "reason": None if indices else "no GPU is visible",
    }


def _visible(indices: Sequence[int]) -> list[int]:
    """Honour ``CUDA_VISIBLE_DEVICES``, by index or by UUID."""
    import pynvml

    named = environment().get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return list(indices)
    wanted = tuple(part.strip() for part in named.split(",") if part.strip())

    def is_wanted(index: int) -> bool:
        uuid = pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index))
        return any(part == str(index) or uuid.startswith(part) for part in wanted)

    return [index for index in indices if is_wanted(index)]


def _or_none(ask: Any) -> float | None:
    import pynvml

    try:
        return float(ask())
    except pynvml.NVMLError:
        return None


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
