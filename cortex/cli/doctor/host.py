"""What is here: files, versions, disks; and of what it is the host."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import attrs

from cortex import __version__
from cortex.cli.config.check import check
from cortex.cli.config.files import Subject
from cortex.cli.console import size
from cortex.cli.doctor.findings import Finding
from cortex.cli.weights.folders import Folders
from cortex.config.load import default_file, load_gateway, load_neuron
from cortex.config.mistakes import Mistakes
from cortex.config.schema import Catalogue, GatewayConfig, NeuronConfig

ENGINE = (
    *("torch", "transformers", "tokenizers", "jinja2", "gguf", "accelerate", "llguidance"),
    "PIL",
)
INSTALL = (
    "-m pip install 'torch>=2.11' 'transformers>=5.17' jinja2 gguf accelerate llguidance pillow"
)
DRIVER = (Path("/dev/nvidiactl"), Path("/proc/driver/nvidia/version"))
LOW_BYTES = 20 << 30  # a model of 8 billion parameters takes about as much
NONE_BYTES = 1 << 30


@attrs.frozen(kw_only=True)
class Host:
    """
    What is here.

    Attributes:
        gateway: cortex.toml and its catalogue; None if there is none, or it is wrong.
        has_gpu: Whether a driver for NVIDIA's GPUs is loaded, whatever state it is in.
    """

    gateway_file: Path | None
    neuron_file: Path | None
    gateway: tuple[GatewayConfig, Catalogue] | None
    neuron: NeuronConfig | None
    has_gpu: bool

    @classmethod
    def of(cls, args: argparse.Namespace) -> Host:
        """Look around."""
        gateway_file = args.config or default_file("cortex.toml")
        neuron_file = args.neuron_config or default_file("neuron.toml")
        gateway, neuron = None, None
        with Mistakes():  # the check of the configuration says them
            gateway = load_gateway(gateway_file) if gateway_file else None
        with Mistakes():
            neuron = load_neuron(neuron_file) if neuron_file else None
        return cls(
            gateway_file=gateway_file,
            neuron_file=neuron_file,
            gateway=gateway,
            neuron=neuron,
            has_gpu=any(path.exists() for path in DRIVER) or bool(shutil.which("nvidia-smi")),
        )

    @property
    def is_node(self) -> bool:
        """Whether models run here, or are meant to."""
        return self.neuron_file is not None or self.has_gpu


def configuration(host: Host) -> Iterator[Finding]:
    """Check the files that are here."""
    subjects = [
        Subject(kind, path)
        for kind, path in (("gateway", host.gateway_file), ("neuron", host.neuron_file))
        if path is not None
    ]
    if not subjects:
        said = "neither cortex.toml nor neuron.toml is here: no program of ours is run from here"
        yield Finding(check="config", state="skip", message=said)
    logging.getLogger("cortex.plugins").addHandler(logging.NullHandler())  # `check` says it all
    for subject in subjects:
        found = check(subject)
        for each in found:
            place = ":".join(str(part) for part in (each.file, each.line) if part)
            said = ": ".join(filter(None, (place, each.key, each.message)))
            yield Finding(
                check="config",
                state="fail" if each.state == "error" else "warn",
                message=said,
                do=each.do or f"correct it; `cortex config check {subject.path}` says it again",
            )
        if not found:
            yield Finding(check="config", state="ok", message=str(subject.path))


def versions(host: Host) -> Iterator[Finding]:
    """Say what runs here, and what a node lacks."""
    python = sys.version.split()[0]
    said = f"cortex {__version__}, Python {python} ({sys.executable})"
    yield Finding(check="versions", state="ok", message=said)
    if not host.is_node:
        said = "no engine is needed: no neuron.toml and no GPU is here"
        yield Finding(check="engine", state="skip", message=said)
        return
    names = host.neuron.harnesses if host.neuron else None
    if names is not None and "torch" not in names:
        yield Finding(check="engine", state="skip", message="harnesses leaves torch out")
        return
    if missing := [name for name in ENGINE if find_spec(name) is None]:
        said = f"{sys.executable} has no {', '.join(missing)}"
        do = f"{sys.executable} {INSTALL}"
        yield Finding(check="engine", state="fail", message=said, do=do)
        return
    have = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
    yield Finding(check="engine", state="ok", message=have)


def disks(host: Host) -> Iterator[Finding]:
    """Look for room for weights, and whether what is kept can be written."""
    if host.is_node:
        folders = Folders.of(host.neuron)
        for place in dict.fromkeys((folders.hub, folders.packages)):
            yield _room(place)
    else:
        yield Finding(check="disk", state="skip", message="no weights are kept here")
    if host.gateway is None:
        return
    config = host.gateway[0]
    kept = (config.gateway.state_path, config.ledger.path, config.replies.path, config.audit.path)
    for folder in dict.fromkeys(path.parent for path in kept if path is not None):
        if not _is_writable(folder):
            yield Finding(
                check="disk",
                state="fail",
                message=f"{folder} cannot be written: what the gateway learns is lost",
                do=f"make it the user's who runs the gateway: chown USER {folder}",
            )


def _room(folder: Path) -> Finding:
    if not _is_writable(folder):
        do = f"chown USER {folder}, or set CORTEX_CACHE and HF_HOME to where there is room"
        return Finding(check="disk", state="fail", message=f"{folder} cannot be written", do=do)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    said = f"{size(free)} free for weights in {folder}"
    if free >= LOW_BYTES:
        return Finding(check="disk", state="ok", message=said)
    do = "`cortex cache list` shows what is there, `cortex cache prune --older-than 30d` frees it"
    return Finding(check="disk", state="fail" if free < NONE_BYTES else "warn", message=said, do=do)


def _is_writable(folder: Path) -> bool:
    there = next((path for path in (folder, *folder.parents) if path.exists()), None)
    return there is not None and there.is_dir() and os.access(there, os.W_OK)
