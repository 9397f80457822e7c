"""The metrics gateway and neuron export, with their labels."""

from __future__ import annotations

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cortex.fleet.node import Health
from cortex.gateway.gauges import FleetCollector
from cortex.gateway.metrics import GatewayMetrics
from cortex.gateway.nodes import Nodes
from cortex.gateway.queue import Queues
from cortex.neuron.metrics import NeuronCollector
from cortex.plugins import Plugins


def exported(plugins: Plugins) -> dict[str, tuple[str, ...]]:
    """Return the labels of every metric by its name; a counter's ends in ``_total``."""
    counted = [metric for metric in vars(GatewayMetrics()).values() if hasattr(metric, "_type")]
    named = {full(metric._name, metric._type): metric._labelnames for metric in counted}
    collectors: list[Collector] = [
        FleetCollector(Nodes([], plugins), Queues(1)),
        NeuronCollector(lambda: Health(status="ok")),
    ]
    families: list[Metric] = [metric for each in collectors for metric in each.collect()]
    assert counted
    assert families
    named |= {full(family.name, family.type): family._labelnames for family in families}
    assert len(named) == len(counted) + len(families), "two metrics have one name"
    return named


def full(name: str, kind: str) -> str:
    return name + ("_total" if kind == "counter" else "")
