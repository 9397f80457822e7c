"""
The fleet as it is, for Prometheus: what the neurons last said, and what is under way here.

Read when asked, in the thread of the metrics: it copies a table in one step before it walks it, and
changes nothing.  What a node out of service said last is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import attrs
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cortex.fleet.node import Device, ModelHealth, NodeModel
from cortex.gateway.node import Node
from cortex.gateway.nodes import Nodes
from cortex.gateway.queue import Queues

MODEL = ("model", "node")
DEVICE = ("node", "device")
POLLED = {
    "max_in_flight": "requests it takes at once, 0 is any number",
    "tok_s_prefill": "prompt tokens per second of a request, smoothed",
    "tok_s_decode": "generated tokens per second of a request, smoothed",
    "tok_s": "generated tokens per second now, of all requests",
    "kv_used_pct": "share of its cache of keys and values that requests hold",
    "prefix_hit_pct": "share of prompt tokens found in that cache",
}
DEVICES = {
    "vram_used_mb": "MiB in use, by whomever",
    "vram_free_mb": "MiB free",
    "vram_total_mb": "MiB",
    "utilization_pct": "percent of the time it was busy",
    "temp_c": "degrees Celsius",
}


@attrs.frozen(eq=False)
class FleetCollector(Collector):
    """Renders nodes, their models and devices, and the queues."""

    nodes: Nodes
    queues: Queues[Any]

    def collect(self) -> Iterable[Metric]:
        nodes = list(self.nodes)
        yield from of_nodes(nodes)
        yield from of_models(nodes, self.queues)
        yield from of_devices(nodes)


def of_nodes(nodes: list[Node]) -> Iterator[Metric]:
    """Return whether nodes answer."""
    up = GaugeMetricFamily("cortex_node_up", "1 while it answers", labels=["node"])
    drained = GaugeMetricFamily("cortex_node_drained", "1 if nothing new may go", labels=["node"])
    ejections = CounterMetricFamily(
        "cortex_ejections", "times it went out of service", labels=["node"]
    )
    for node in nodes:
        up.add_metric([node.name], node.healthy)
        drained.add_metric([node.name], node.drained)
        ejections.add_metric([node.name], node.ejections)
    yield from (up, drained, ejections)


def of_models(nodes: list[Node], queues: Queues[Any]) -> Iterator[Metric]:
    """Return what models do, and who waits for them."""
    loaded = gauge("cortex_model_loaded", "1 if requests can go there", MODEL)
    vram = gauge("cortex_model_vram_used_mb", "MiB it takes", MODEL)
    in_flight = gauge("cortex_model_in_flight", "requests of this gateway there", MODEL)
    depth = gauge("cortex_model_queue_depth", "requests that wait, here if no node", MODEL)
    for queue in queues:
        depth.add_metric([queue.spec.id, ""], len(queue))
    for node, model in models_of(nodes):
        loaded.add_metric([model.id, node.name], model.routable)
        vram.add_metric([model.id, node.name], model.vram_used_mb)
    for node in nodes:
        for name, count in list(node.in_flight.items()):
            in_flight.add_metric([name, node.name], count)
    for node, row in health_of(nodes):
        depth.add_metric([row.id, node.name], row.queue_depth)
    yield from (loaded, vram, in_flight, depth)
    for name, meaning in POLLED.items():
        polled = gauge(f"cortex_model_{name}", meaning, MODEL)
        for node, row in health_of(nodes):
            if (value := getattr(row, name)) is not None:
                polled.add_metric([row.id, node.name], value)
        yield polled


def of_devices(nodes: list[Node]) -> Iterator[Metric]:
    """Return how devices are; what one does not say is left out."""
    ok = gauge("cortex_device_ok", "1 if it can be used", DEVICE)
    for node, device in devices_of(nodes):
        ok.add_metric([node.name, str(device.index)], device.state == "ok")
    yield ok
    for name, meaning in DEVICES.items():
        said = gauge(f"cortex_device_{name}", meaning, DEVICE)
        for node, device in devices_of(nodes):
            if (value := getattr(device, name)) is not None:
                said.add_metric([node.name, str(device.index)], value)
        yield said
    defrags = CounterMetricFamily("cortex_defrags", "restarts of idle workers", labels=DEVICE)
    for node in nodes:
        for index, count in list(node.defrags.items()):
            defrags.add_metric([node.name, str(index)], count)
    yield defrags


def gauge(name: str, meaning: str, labels: tuple[str, ...]) -> GaugeMetricFamily:
    """Return a gauge without values yet."""
    return GaugeMetricFamily(name, meaning, labels=labels)


def models_of(nodes: list[Node]) -> Iterator[tuple[Node, NodeModel]]:
    """Return the models of the nodes that answer."""
    for node in nodes:
        if node.healthy:
            for model in list(node.models.values()):
                yield node, model


def health_of(nodes: list[Node]) -> Iterator[tuple[Node, ModelHealth]]:
    """Return what the nodes that answer say of their models."""
    for node in nodes:
        if node.healthy and node.health is not None:
            for row in node.health.models:
                yield node, row


def devices_of(nodes: list[Node]) -> Iterator[tuple[Node, Device]]:
    """Return the devices of the nodes that answer."""
    for node in nodes:
        if node.healthy and node.health is not None:
            for device in node.health.devices:
                yield node, device
