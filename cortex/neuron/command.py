"""``cortex neuron``: run the daemon of a GPU host."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cortex import log_lines

if TYPE_CHECKING:
    from cortex.config.schema import NeuronConfig

DRAIN_S = 10.0
STOP_S = 60.0  # with the workers' last steps
SWITCH_S = 0.001  # threads that read prompts keep the loop from going on that long
EXAMPLES = """\
examples:
  cortex neuron
  cortex neuron --config /etc/cortex/neuron.toml --log-level debug

Exit codes: 0 told to stop, 1 failed, 2 bad usage or configuration.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="neuron.toml (default: ./neuron.toml if there is one, else all defaults)",
    )
    parser.add_argument(
        "--listen", metavar="HOST:PORT", help="where to listen (default: 0.0.0.0:13131)"
    )
    log_lines.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT."""
    import attrs

    from cortex import web
    from cortex.config.load import address_option, default_file, load_neuron

    path = args.config or default_file("neuron.toml")
    config = load_neuron(path)
    config = attrs.evolve(config, listen=address_option("--listen", args.listen, config.listen))
    sys.setswitchinterval(SWITCH_S)
    web.run(serve(config, path.name if path else "neuron.toml"), args.log_level, args.log_format)
    return 0


async def serve(config: NeuronConfig, where: str) -> None:
    """Run a neuron: bind first, then warm up, then serve until told to stop."""
    from cortex import tls
    from cortex.api import Source
    from cortex.config.load import cache_dir, environment
    from cortex.events import Events
    from cortex.fleet.model import ModelSpec
    from cortex.log_lines import say
    from cortex.logs import Logs
    from cortex.neuron import discovery
    from cortex.neuron.app import Neuron, build_harnesses
    from cortex.neuron.models import Models
    from cortex.plugins import Plugins
    from cortex.systemd import Service
    from cortex.web import lifespans, listening, until_signal

    plugins, service, logs = Plugins(config.plugins), Service(environment()), Logs()
    context = tls.listener(config.tls, f"{where}: tls.")
    host = await asyncio.to_thread(discovery.discover)

    def source_of(spec: ModelSpec) -> Source:
        return plugins.source_of(spec, config.sources, where, cache_dir())

    async with logs.kept(), asyncio.TaskGroup() as tasks, lifespans(plugins, "neuron"):
        events = Events()
        models = Models(host.devices, tasks, events.publish, source_of)
        neuron = Neuron(config, plugins, host, models, events, logs=logs)
        models.harnesses = build_harnesses(config, plugins, models, where)
        async with listening(
            neuron.application(), config.listen, drain_s=DRAIN_S, tls=context
        ) as address:
            gpus = ", ".join(device.name for device in host.devices)
            url = f"http{'s' * bool(context)}://{address}"
            say(f"cortex neuron listens on {url} with {gpus}")
            if not address.is_loopback and config.token is None:
                say("no token is set: whoever reaches this address can use it")
            background = [
                tasks.create_task(neuron.refresh(), name="refresh"),
                tasks.create_task(service.keep_alive(), name="watchdog"),
                tasks.create_task(neuron.activator.run(neuron.load), name="activation"),
            ]
            service.ready(f"serving on {address}")
            say(f"cortex neuron: {await until_signal()}, stopping")
            service.stopping(STOP_S)
            for task in background:
                task.cancel()
        for harness in models.harnesses.values():
            await harness.aclose()
        models.stop()
