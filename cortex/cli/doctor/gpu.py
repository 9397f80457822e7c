"""GPUs: whether the driver answers, fits what torch is built for, and lets it at them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from cortex.cli.doctor.findings import Finding
from cortex.cli.doctor.host import Host
from cortex.config.load import environment

PROBE = (sys.executable, "-P", "-m", "cortex.neuron.engine.driver")
WITHIN_S = 60.0  # torch is imported from a cold disk
GONE_S = 1.0  # a process the driver holds does not even die of SIGKILL
MISMATCH = "version mismatch"
REBOOT = (
    "reboot the host, or unload the modules (`rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia`)"
)
GET_STARTED = "https://pytorch.org/get-started/locally says how"


def gpus(
    host: Host, command: Sequence[str] = PROBE, within_s: float = WITHIN_S
) -> Iterator[Finding]:
    """Look at driver, torch, and both together."""
    wanted = host.neuron.harness.get("torch", {}).get("device") if host.neuron else None
    if not host.has_gpu:
        none = "no NVIDIA driver is loaded here"
        if wanted == "cuda":
            do = "install the driver; `lspci | grep -i nvidia` says whether there is a GPU at all"
            yield Finding(check="driver", state="fail", message=none, do=do)
        else:
            yield Finding(check="driver", state="skip", message=none)
        return
    if wanted == "cpu":
        yield Finding(check="driver", state="skip", message="harness.torch.device is the CPU")
        return
    said, hung = probe(command, within_s)
    yield from judge(said, f"within {within_s:g} s" if hung else "")


def probe(command: Sequence[str], within_s: float) -> tuple[dict[str, Any], bool]:
    """Return what a program says in lines of JSON, and whether it had to be left to itself."""
    hung = False
    env = dict(environment())
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)  # of a single file too
    with tempfile.TemporaryFile() as out:  # a pipe would keep us as long as the process
        process = subprocess.Popen(  # noqa: S603 - our interpreter and our module
            command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(within_s)
        except subprocess.TimeoutExpired:
            hung = True
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(GONE_S)
        out.seek(0)
        found: dict[str, Any] = {}
        for line in out.read().splitlines():
            with suppress(ValueError):
                found |= json.loads(line)
    return found, hung


def judge(said: dict[str, Any], silent: str) -> Iterator[Finding]:
    """
    Yield what driver and torch come to.

    Args:
        said: What `cortex.neuron.engine.driver` said.
        silent: How long it was waited for, if it did not end.
    """
    driver, torch = said.get("nvml"), said.get("torch")
    if driver is None:
        yield Finding(
            check="driver",
            state="fail",
            message=f"it did not answer {silent}" if silent else "it ended the program that asked",
            do="it is wedged: `dmesg | grep -i -e nvrm -e xid` says why; reboot the host",
        )
        return
    if error := driver.get("error"):
        yield Finding(check="driver", state="fail", message=error, do=_driver_advice(error))
        return
    names = ", ".join(device["name"] for device in driver["devices"]) or "no GPU"
    cuda = ".".join(map(str, driver["cuda"]))
    message = f"{driver['driver']}, for CUDA up to {cuda}, with {names}"
    yield Finding(check="driver", state="ok", message=message)
    if torch is None:
        yield Finding(
            check="CUDA",
            state="fail",
            message=f"torch could not be asked {silent or 'and ended'}",
            do="`nvidia-smi` shows who uses the GPUs; if that is nobody, reboot the host",
        )
        return
    yield _together(driver, torch)


def _driver_advice(error: str) -> str:
    if MISMATCH in error.lower():
        return f"the driver was updated while its old module runs: {REBOOT}"
    if "NotFound" in error or "ModuleNotFound" in error:
        return "its library libnvidia-ml.so.1 is missing: install the driver's user-space package"
    if "Permission" in error:
        return "the user may not use /dev/nvidia*: add it to their group, often `video`"
    return "`nvidia-smi` should say the same; reinstall the driver, or reboot the host"


def _together(driver: dict[str, Any], torch: dict[str, Any]) -> Finding:
    """Return whether torch can use what the driver has."""
    if wrong := _wrong(driver, torch):
        return Finding(check="CUDA", state="fail", message=wrong[0], do=wrong[1])
    message = f"torch {torch['version']}, built for CUDA {torch['cuda']}, sees {torch['devices']}"
    return Finding(check="CUDA", state="ok", message=message)


def _wrong(driver: dict[str, Any], torch: dict[str, Any]) -> tuple[str, str] | None:
    """Return what keeps torch from the GPUs, and what to do."""
    if "version" not in torch:
        return f"torch cannot be imported: {torch.get('error')}", "see `engine` above"
    version, built, newest = f"torch {torch['version']}", torch["cuda"], driver["cuda"][0]
    another = f"install a torch built for CUDA {newest}: {GET_STARTED}"
    wrong = None
    if built is None:
        wrong = f"{version} is built without CUDA", another
    elif int(built.partition(".")[0]) > newest:
        said = f"{version} is built for CUDA {built}, and the driver ends at {newest}"
        wrong = said, f"update the driver, or {another}"
    elif error := torch.get("error"):
        wrong = f"{version} cannot reach the GPUs: {error}", _reach_advice(error)
    elif old := _unsupported(driver["devices"], torch.get("architectures", ())):
        wrong = f"{version} has no kernels for {old}", "install an older torch that has them"
    return wrong


def _reach_advice(error: str) -> str:
    if "No CUDA GPUs" in error:
        return "CUDA_VISIBLE_DEVICES leaves none, or the container was given none (--gpus all)"
    if "unknown error" in error or "initialization" in error:
        return "`modprobe nvidia_uvm` (after a suspend: `rmmod nvidia_uvm` first), else reboot"
    if "insufficient" in error or "too old" in error:
        return "update the driver, or install a torch built for an older CUDA"
    return "`nvidia-smi` and `dmesg | grep -i nvrm` say more"


def _unsupported(devices: Sequence[dict[str, Any]], architectures: Sequence[str]) -> str:
    """Return the first GPU older than every architecture torch has kernels for."""
    known = [int(name.partition("_")[2].rstrip("af")) for name in architectures if "_" in name]
    for device in devices:
        major, minor = device["capability"]
        if known and 10 * major + minor < min(known):
            return f"{device['name']} (compute capability {major}.{minor})"
    return ""
