"""
What the driver and torch say of this host's GPUs, as lines of JSON: `cortex doctor` runs it.

A driver can hang for ever, and takes the process with it: hence a program of its own, which says
each thing as soon as it knows it.  It makes no CUDA context and takes no GPU memory.
"""

from __future__ import annotations

import json
from typing import Any


def nvml() -> dict[str, Any]:
    """Return what the driver says, by NVML."""
    import pynvml

    pynvml.nvmlInit()
    cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
    devices = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        capability = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        devices.append({"name": pynvml.nvmlDeviceGetName(handle), "capability": capability})
    return {
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "cuda": [cuda // 1000, cuda % 1000 // 10],
        "devices": devices,
    }


def torch() -> dict[str, Any]:
    """Return which CUDA torch is built for, and what becomes of it here."""
    import torch as library

    said: dict[str, Any] = {"version": library.__version__, "cuda": library.version.cuda}
    if library.version.cuda is None:
        return said
    try:
        library.cuda.init()  # type: ignore[no-untyped-call]
        said["devices"] = library.cuda.device_count()
        said["architectures"] = library.cuda.get_arch_list()
    except (RuntimeError, AssertionError) as error:
        said["error"] = str(error)
    return said


def main() -> None:
    """Say each."""
    for ask in (nvml, torch):
        try:
            said = ask()
        except Exception as error:  # noqa: BLE001 - no library, no driver, no permission
            said = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({ask.__name__: said}), flush=True)  # noqa: T201 - its answer


if __name__ == "__main__":
    main()
