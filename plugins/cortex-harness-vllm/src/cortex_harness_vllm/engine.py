"""
What tells one server from another: its arguments, its log, and where it departs from OpenAI's API.

An `Engine` is what all have in common; vLLM, SGLang and llama.cpp are each a class of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar

import attrs

from cortex.chat.request import ChatRequest
from cortex.errors import OperationUnsupported, UnsupportedParameter
from cortex.fleet.model import Checkpoint, ModelSpec
from cortex_harness_vllm.asking import Asking
from cortex_harness_vllm.options import Arguments

HOST = "127.0.0.1"
MIB = 1 << 20
UNITS = {"MiB": MIB, "MB": MIB, "GiB": MIB << 10, "GB": MIB << 10}


@attrs.frozen(kw_only=True)
class Job:
    """
    A model to be served.

    Attributes:
        devices: Indices of devices as the driver counts them.
        kind: Of the devices, ``cuda`` or ``cpu``.
        total_mb: Memory of the smallest of them; *free_mb* is what the fullest has left.
        args: Arguments of the configuration.
    """

    spec: ModelSpec
    checkpoint: Checkpoint
    devices: tuple[int, ...]
    kind: str = "cuda"
    total_mb: int = 0
    free_mb: int = 0
    args: Arguments = attrs.field(factory=Arguments)
    memory_fraction: float = 0.9

    @property
    def share_mb(self) -> int:
        """What models.toml grants it of each device; 0 if it does not say."""
        return (self.spec.vram_mb or 0) // len(self.devices)


@attrs.frozen(kw_only=True)
class Stage:
    """A line of the log that says how far a load is; groups ``done`` and ``total``, if any."""

    pattern: re.Pattern[str]
    name: str


class Engine:
    """
    See the module.

    Attributes:
        name: Of the harness.
        health: Path that answers 200 once the server does.
        stages: Of a load.
        sizes: Lines that say how much memory something takes: groups ``size`` and ``unit``.
        fatal: A line after which it will not come to life, though its process lives on.
        counts_first: Whether a stream says its prompt's tokens too late.
        environment: Variables it gets.
        figures: Fields of `ModelStats`, by the metric of ``/metrics`` that says them.
    """

    name: ClassVar[str]
    health: ClassVar[str] = "/health"
    stages: ClassVar[tuple[Stage, ...]] = ()
    sizes: ClassVar[tuple[re.Pattern[str], ...]] = ()
    fatal: ClassVar[re.Pattern[str] | None] = None
    counts_first: ClassVar[bool] = False
    environment: ClassVar[Mapping[str, str]] = {"PYTHONUNBUFFERED": "1"}
    figures: ClassVar[Mapping[str, str]] = {}

    def arguments(self, job: Job, port: int) -> list[str]:
        """Return what follows the command, but for the configuration's arguments."""
        raise NotImplementedError

    def check(self, spec: ModelSpec, checkpoint: Checkpoint) -> None:
        """Raise `UnsupportedArchitecture` if it cannot run such files."""

    def hosts(self, args: Arguments) -> int:
        """Return over how many hosts these arguments spread a model."""
        del args
        return 1

    def taken(self, line: str) -> int:
        """Return the bytes that a line says something takes."""
        found = (pattern.search(line) for pattern in self.sizes)
        return sum(
            round(float(size) * UNITS[unit])
            for match in filter(None, found)
            for size, unit in _pairs(match)
        )

    async def capabilities(self, job: Job, asking: Asking) -> tuple[str, ...]:
        """Return what a model that is served can do."""
        raise NotImplementedError

    def context(self, model: Mapping[str, Any]) -> int:
        """Return the context of a row of ``/v1/models``; 0 if it does not say."""
        return int(model.get("max_model_len") or 0)

    def refuse(self, request: ChatRequest) -> None:
        """Raise `UnsupportedParameter` for what the server would not honour, and not refuse."""

    async def count(self, asking: Asking, request: ChatRequest, body: dict[str, Any]) -> int:
        """
        Return the tokens of a prompt.

        Args:
            asking: The server.
            request: Whose prompt.
            body: As it would be generated from.
        """
        raise NotImplementedError

    async def tokens(self, asking: Asking, text: str) -> int:
        """Return the tokens of a text that stands in the middle of others."""
        raise NotImplementedError

    async def text(self, asking: Asking, ids: Sequence[int]) -> str:
        """Return what token ids say."""
        raise NotImplementedError


class PythonEngine(Engine):
    """What vLLM and SGLang share: checkpoints of transformers, and the words of their logs."""

    pools: ClassVar[tuple[tuple[str, ...], ...]] = ()  # arguments that make it embed

    async def capabilities(self, job: Job, asking: Asking) -> tuple[str, ...]:
        del asking
        if any(job.args.value(name) in values for name, *values in self.pools):
            return ("embedding",)
        found = {
            "vision": "vision_config" in config_of(job.checkpoint),
            "tools": job.args.has("--tool-call-parser"),
            "reasoning": job.args.has("--reasoning-parser"),
        }
        return ("text", *(name for name, there in found.items() if there))

    async def tokens(self, asking: Asking, text: str) -> int:
        said = await asking.post(
            "/tokenize", {"model": asking.model, "prompt": text, "add_special_tokens": False}
        )
        return int(said["count"])

    async def text(self, asking: Asking, ids: Sequence[int]) -> str:
        said = await asking.post("/detokenize", {"model": asking.model, "tokens": list(ids)})
        return str(said.get("prompt", said.get("text", "")))


def config_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return ``config.json`` of a checkpoint; empty if it has none."""
    with suppress(OSError, ValueError):
        found = json.loads((checkpoint.path / "config.json").read_bytes())
        if isinstance(found, dict):
            return found
    return {}


def unsupported(engine: Engine, what: str, param: str) -> UnsupportedParameter:
    """Return the error for what a server cannot do."""
    return UnsupportedParameter(f"harness {engine.name!r} {what}", param=param)


def no_tokens(engine: Engine, what: str) -> OperationUnsupported:
    """Return the error for a count the server has no way to make."""
    return OperationUnsupported(f"harness {engine.name!r} cannot count {what}")


def _pairs(match: re.Match[str]) -> list[tuple[str, str]]:
    groups = match.groups()
    return list(zip(groups[::2], groups[1::2], strict=True))
