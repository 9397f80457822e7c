"""
What a neuron counts, for Prometheus; read from its state when asked.

The names are not those of the gateway, so that who scrapes both counts nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cortex.fleet.node import Health

GAUGES = {
    "in_flight": "requests that run",
    "queue_depth": "requests that wait",
    "tok_s_prefill": "prompt tokens per second, smoothed",
    "tok_s_decode": "generated tokens per second and request, smoothed",
    "tok_s": "generated tokens per second now, of all requests",
    "running": "requests the engine computes",
    "waiting": "requests that wait in the engine for room in its cache",
    "kv_used_pct": "share of its cache that requests hold",
}
COUNTERS = {
    "tokens_total": ("generated_tokens", "also those whose client had left"),
    "prompt_tokens_total": ("prompt_tokens", "of prompts, those found in the cache included"),
    "cached_tokens_total": ("cached_prompt_tokens", "of prompts, found in the cache"),
    "preemptions_total": ("preemptions", "times a request gave its part of the cache back"),
    "drafted_tokens_total": ("drafted_tokens", "that were guessed and tried"),
    "accepted_tokens_total": ("accepted_tokens", "that were guessed and came true"),
}


class NeuronCollector(Collector):
    """Renders what ``GET /health`` answers as metrics."""

    def __init__(self, health: Callable[[], Health]) -> None:
        self._health = health

    def collect(self) -> Iterable[Metric]:
        health = self._health()
        used = GaugeMetricFamily("cortex_neuron_device_vram_used_mb", "in MiB", labels=["device"])
        total = GaugeMetricFamily("cortex_neuron_device_vram_total_mb", "in MiB", labels=["device"])
        state = GaugeMetricFamily(
            "cortex_neuron_device_ok", "1 if it can be used", labels=["device"]
        )
        for device in health.devices:
            label = [str(device.index)]
            used.add_metric(label, device.vram_used_mb)
            total.add_metric(label, device.vram_total_mb)
            state.add_metric(label, device.state == "ok")
        yield from (used, total, state)
        for name, meaning in GAUGES.items():
            gauge = GaugeMetricFamily(f"cortex_neuron_model_{name}", meaning, labels=["model"])
            yield filled(gauge, health, name)
        for name, (called, meaning) in COUNTERS.items():
            counter = CounterMetricFamily(
                f"cortex_neuron_model_{called}", meaning, labels=["model"]
            )
            yield filled(counter, health, name)


def filled(family: GaugeMetricFamily | CounterMetricFamily, health: Health, name: str) -> Metric:
    """Add what each model says of *name*; what one does not say is left out."""
    for model in health.models:
        if (value := getattr(model, name)) is not None:
            family.add_metric([model.id], value)
    return family
