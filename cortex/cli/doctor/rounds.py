"""The order in which a host and its fleet are looked at: what is nearest first."""

from __future__ import annotations

from collections.abc import Iterator

from cortex.cli.client import Gateway
from cortex.cli.doctor import fleet, gpu, host, ports
from cortex.cli.doctor.findings import Finding


def rounds(here: host.Host, there: Gateway) -> Iterator[Finding]:
    """Yield what is found; each check is bounded, and none stands in for another."""
    yield from host.versions(here)
    yield from host.configuration(here)
    yield from gpu.gpus(here)
    yield from host.disks(here)
    yield from ports.ports(here)
    yield from fleet.neuron(here)
    yield from fleet.neurons(here)
    yield from fleet.gateway(here, there)
