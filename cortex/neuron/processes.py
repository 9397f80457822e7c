"""Starts the processes of device workers."""

from __future__ import annotations

import asyncio
import os
import socket
import sys

from cortex.config.load import environment

ALONE = {  # what ranks of a group say to each other stays on this host; no NVLink multicast
    "NCCL_SOCKET_IFNAME": "lo",
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES": "1",  # each worker calls its own GPU the first
}


async def start(
    index: int, kind: str, threads: int, channel: socket.socket
) -> asyncio.subprocess.Process:
    """
    Start the worker of a device.

    Args:
        index: Of the device.
        kind: ``cuda`` or ``cpu``.
        threads: CPU threads; 0 lets torch decide.
        channel: Its end of the job channel.
    """
    env = dict(environment())
    env["TQDM_DISABLE"] = "1"  # progress goes through the channel
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    device = "cpu"
    if kind == "cuda":
        device = "cuda:0"
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        env["CUDA_VISIBLE_DEVICES"] = str(index)
        env = {**ALONE, **env}
    arguments = [str(channel.fileno()), device, str(threads)]
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "cortex.neuron.engine", *arguments),
        env=env,
        pass_fds=(channel.fileno(),),
        stdin=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the neuron; the worker leaves with its channel
    )
