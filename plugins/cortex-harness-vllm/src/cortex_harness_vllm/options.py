"""What ``[harness.NAME]`` of neuron.toml may say of a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs


class Arguments(tuple[str, ...]):
    """Arguments of a command line: ``--name value`` and ``--name=value``."""

    __slots__ = ()

    def has(self, *names: str) -> bool:
        """Tell whether one of *names* is among them."""
        return any(argument.partition("=")[0] in names for argument in self)

    def value(self, *names: str) -> str:
        """Return the last value that one of *names* has; empty if there is none."""
        found = ""
        for number, argument in enumerate(self):
            name, equals, value = argument.partition("=")
            if name in names:
                found = value if equals else "".join(self[number + 1 : number + 2])
        return found

    def unless(self, names: Sequence[str], *values: object) -> list[str]:
        """Return the first of *names* with its values, unless one of them is here already."""
        return [] if self.has(*names) else [names[0], *map(str, values)]


@attrs.frozen(kw_only=True)
class ModelOptions:
    """
    ``[harness.NAME.models."ID"]``: what one model's server gets besides.

    Attributes:
        args: Arguments, behind those of all servers.
        env: Variables of the environment; one of all servers' is replaced.
    """

    args: tuple[str, ...] = ()
    env: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class ServerOptions:
    """
    ``[harness.NAME]``.

    Attributes:
        command: The program, and what comes before our arguments.
        args: Arguments of every server.
        env: Variables of the environment of every server; they win over ours.
        models: What the servers of single models get besides, by id.
        memory_fraction: Of what is free on a device, the share a server may take, where
            models.toml does not say how much its model may take; vLLM only.
        max_in_flight: Requests a server gets at once; more wait.
        start_s: How long a server may take until it answers.
        watchdog_s: A server that answers nothing for so long is replaced.
        stop_s: How long it may take to end by itself.
    """

    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = attrs.field(factory=dict)
    models: Mapping[str, ModelOptions] = attrs.field(factory=dict)
    memory_fraction: float = 0.9
    max_in_flight: int = 256
    start_s: float = 1800.0
    watchdog_s: float = 60.0
    stop_s: float = 20.0

    def args_for(self, model: str) -> Arguments:
        """Return the arguments the configuration has for a model's server."""
        return Arguments((*self.args, *self.models.get(model, ModelOptions()).args))

    def env_for(self, model: str) -> dict[str, str]:
        """Return the variables it has for that."""
        return {**self.env, **self.models.get(model, ModelOptions()).env}


@attrs.frozen(kw_only=True)
class VllmOptions(ServerOptions):
    """``[harness.vllm]``."""

    command: tuple[str, ...] = ("vllm", "serve")


@attrs.frozen(kw_only=True)
class SglangOptions(ServerOptions):
    """``[harness.sglang]``."""

    command: tuple[str, ...] = ("python3", "-m", "sglang.launch_server")


@attrs.frozen(kw_only=True)
class LlamaServerOptions(ServerOptions):
    """``[harness.llama-server]``."""

    command: tuple[str, ...] = ("llama-server",)


@attrs.frozen(kw_only=True)
class LlamaCppPythonOptions(ServerOptions):
    """``[harness.llama-cpp-python]``; its server answers one request at a time."""

    command: tuple[str, ...] = ("python3", "-m", "llama_cpp.server")
    max_in_flight: int = 1
