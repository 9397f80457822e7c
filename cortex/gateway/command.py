"""``cortex serve``: run the gateway."""

from __future__ import annotations

import argparse
import gc
from pathlib import Path
from typing import TYPE_CHECKING

from cortex import log_lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from cortex.config.schema import Catalogue, GatewayConfig
    from cortex.gateway.app import Gateway
    from cortex.gateway.reload import Read

CLOSE_S = 5.0  # for what is cut off to end
COLLECT_EVERY = 20_000  # objects more than before
EXAMPLES = """\
examples:
  cortex serve
  cortex serve --config /etc/cortex/cortex.toml
  cortex serve --neuron http://beast:13131 --neuron http://benjy:13131

Exit codes: 0 told to stop, 1 failed, 2 bad usage or configuration.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="cortex.toml (default: ./cortex.toml if there is one, else all defaults)",
    )
    parser.add_argument(
        "--listen", metavar="HOST:PORT", help="where to listen (default: 0.0.0.0:31313)"
    )
    parser.add_argument(
        "--metrics-listen", metavar="HOST:PORT", help="for /metrics (default: 0.0.0.0:31314)"
    )
    parser.add_argument(
        "--neuron",
        action="append",
        default=[],
        metavar="[NAME=]URL",
        help="a node, beside those of the file; may be given several times",
    )
    log_lines.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT; read the files again at SIGHUP."""
    from cortex import web
    from cortex.config.load import default_file, load_gateway

    path = args.config or default_file("cortex.toml")

    def read() -> tuple[GatewayConfig, Catalogue]:
        config, catalogue = load_gateway(path)
        return with_arguments(config, args), catalogue

    config, catalogue = read()
    where = path.name if path else "cortex.toml"
    web.run(serve(config, catalogue, where, read), args.log_level, args.log_format)
    return 0


def with_arguments(config: GatewayConfig, args: argparse.Namespace) -> GatewayConfig:
    """
    Return *config* with what the command line adds.

    Raises:
        ConfigError: An argument is malformed.
    """
    import attrs

    from cortex.config.load import address_option, check_neurons
    from cortex.config.schema import NeuronEntry

    gateway, neurons = config.gateway, list(config.neurons)
    gateway = attrs.evolve(
        gateway,
        listen=address_option("--listen", args.listen, gateway.listen),
        metrics_listen=address_option(
            "--metrics-listen", args.metrics_listen, gateway.metrics_listen
        ),
    )
    for text in args.neuron:
        name, _, url = text.rpartition("=")
        neurons.append(NeuronEntry(name=name or url.partition("://")[2], endpoint=url))
    config = attrs.evolve(config, gateway=gateway, neurons=tuple(neurons))
    if args.neuron:
        check_neurons(config, "command line")
    return config


async def serve(config: GatewayConfig, catalogue: Catalogue, where: str, read: Read) -> None:
    """Run a gateway until told to stop."""
    import asyncio

    import aiohttp

    from cortex.config.load import environment
    from cortex.gateway.app import Gateway
    from cortex.gateway.claims import claimed
    from cortex.gateway.metrics_server import MetricsServer
    from cortex.log_lines import say
    from cortex.logs import Logs
    from cortex.plugins import Plugins
    from cortex.systemd import Service
    from cortex.web import lifespans, listening, until_signal

    plugins, service, logs = Plugins(config.plugins), Service(environment()), Logs()
    async with (
        logs.kept(),
        claimed(config.gateway, where),
        asyncio.TaskGroup() as tasks,
        aiohttp.ClientSession() as session,
        lifespans(plugins, "gateway"),
    ):
        gateway = Gateway(
            config=config,
            catalogue=catalogue,
            plugins=plugins,
            where=where,
            session=session,
            tasks=tasks,
            read=read,
            service=service,
            logs=logs,
        )
        metrics = MetricsServer(gateway.metrics.registry, config.gateway.metrics_listen)
        try:
            await gateway.start()
            collect_seldom()
            async with listening(
                gateway.application(), config.gateway.listen, drain_s=CLOSE_S, tls=gateway.tls
            ) as address:
                url = f"http{'s' * bool(gateway.tls)}://{address}"
                say(f"cortex gateway listens on {url}")
                say(f"metrics on http://{metrics.address}/metrics")
                for line in posture(config):
                    say(line)
                on_hangup(lambda: tasks.create_task(hang_up(gateway), name="reload"))
                service.ready(f"serving on {address}")
                watchdog = tasks.create_task(service.keep_alive(), name="watchdog")
                say(f"cortex gateway: {await until_signal(gateway.hurry)}, stopping")
                drain_s = gateway.config.gateway.drain_s
                service.stopping(drain_s + 2 * CLOSE_S)
                await gateway.drain(drain_s)
                watchdog.cancel()
        finally:
            gateway.stop()
            metrics.close()


def on_hangup(do: Callable[[], object]) -> None:
    """Call *do* at each SIGHUP."""
    import asyncio
    import signal

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, do)


def collect_seldom() -> None:
    """Leave what is there from the start alone: looking for cycles in it stops all requests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY)


async def hang_up(gateway: Gateway) -> None:
    """Reload; what is wrong is in the log, and nothing has changed."""
    from contextlib import suppress

    from cortex.errors import ReloadRefused

    with suppress(ReloadRefused):
        await gateway.reload()


def posture(config: GatewayConfig) -> list[str]:
    """Say what an operator should know at the start."""
    lines = []
    if not config.neurons:
        lines.append("no neuron is configured: add [[neurons]] to cortex.toml, or use --neuron URL")
    if not config.gateway.listen.is_loopback and not config.auth.require:
        use = "use and administer it" if config.auth.is_open else "use it as anonymous"
        lines.append(f"no key is asked for: whoever reaches this address can {use}")
    if not (config.auth.is_open or config.gateway.listen.is_loopback or config.gateway.tls):
        lines.append("no TLS is set: keys travel in clear")
    if config.auth.use == ("keys",) and {key.admin for key in config.auth.keys} == {False}:
        lines.append("no key is an admin's: nobody can use the admin API")
    return lines
