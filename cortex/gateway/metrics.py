"""
What the gateway counts.

Labels are what there is a bounded number of: models, nodes, dialects, outcomes and statuses; never
a key, a request's id, or a name a client made up.  Children are bound once.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from functools import partial

import attrs
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from cortex import __version__
from cortex.fleet.model import RequestRecord

WHERE = ("model", "node")
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
LOAD_SECONDS = (0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280)
DELAY_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)


@attrs.frozen
class Bound:
    """What is counted of one model on one node in one dialect."""

    outcomes: Callable[[str], Counter]
    errors: Callable[[str], Counter]
    cancels: Callable[[str], Counter]
    prompt_tokens: Counter
    completion_tokens: Counter
    cached_tokens: Counter
    duration: Histogram
    queue_wait: Histogram
    ttft: Histogram
    rate: Histogram


class GatewayMetrics:
    """Counts finished requests, and what the gateway does by itself."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=False)
        counter = partial(Counter, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        by_dialect = (*WHERE, "dialect")
        self._requests = counter("cortex_requests", "finished requests", (*by_dialect, "outcome"))
        self._errors = counter(
            "cortex_request_errors", "requests that failed", (*by_dialect, "status")
        )
        self._cancels = counter(
            "cortex_request_cancels", "requests whose client left", (*by_dialect, "phase")
        )
        self._retries = counter("cortex_retries", "requests sent elsewhere after this node", WHERE)
        self._resumes = counter("cortex_resumes", "streams that went on here", WHERE)
        self._prompt = counter("cortex_prompt_tokens", "tokens of prompts", WHERE)
        self._completion = counter("cortex_completion_tokens", "tokens of answers", WHERE)
        self._cached = counter("cortex_cached_prompt_tokens", "not computed again", WHERE)
        self._cold_starts = counter("cortex_cold_starts", "loads that were done", WHERE)
        self._load_failures = counter("cortex_load_failures", "loads that failed", WHERE)
        self._evictions = counter("cortex_evictions", "unloads to make room", WHERE)
        self._duration = histogram(
            "cortex_request_duration_seconds", "whole requests", WHERE, buckets=SECONDS
        )
        self._ttft = histogram(
            "cortex_time_to_first_token_seconds", "of streams", WHERE, buckets=SECONDS
        )
        self._rate = histogram(
            "cortex_tokens_per_second", "of an answer after its first", WHERE, buckets=RATES
        )
        self._queue_wait = histogram(
            "cortex_queue_wait_seconds", "for a node to ask", ("model",), buckets=SECONDS
        )
        self._loads = histogram("cortex_load_seconds", "loads done", WHERE, buckets=LOAD_SECONDS)
        self._delay = histogram(
            "cortex_event_loop_delay_seconds", "how late the loop is", buckets=DELAY_SECONDS
        )
        self._build = Gauge(
            "cortex_build_info", "always 1", ("version", "python"), registry=self.registry
        )
        self._build.labels(__version__, platform.python_version()).set(1)
        self.cold_starts = functools.cache(self._cold_starts.labels)
        self.load_failures = functools.cache(self._load_failures.labels)
        self.load_seconds = functools.cache(self._loads.labels)
        self.evictions = functools.cache(self._evictions.labels)
        self.loop_is_late = self._delay.observe
        self._bind = functools.cache(self._bind_now)

    def _bind_now(self, model: str, node: str, dialect: str) -> Bound:
        def each(metric: Counter) -> Callable[[str], Counter]:
            return functools.cache(partial(metric.labels, model, node, dialect))

        return Bound(
            outcomes=each(self._requests),
            errors=each(self._errors),
            cancels=each(self._cancels),
            prompt_tokens=self._prompt.labels(model, node),
            completion_tokens=self._completion.labels(model, node),
            cached_tokens=self._cached.labels(model, node),
            duration=self._duration.labels(model, node),
            queue_wait=self._queue_wait.labels(model),
            ttft=self._ttft.labels(model, node),
            rate=self._rate.labels(model, node),
        )

    def count(self, record: RequestRecord) -> None:
        """Count one finished request."""
        bound = self._bind(record.model, record.node, record.dialect)
        bound.outcomes(record.outcome).inc()
        match record.outcome:
            case "error":
                bound.errors(str(record.status)).inc()
            case "cancelled":
                bound.cancels(phase(record)).inc()
        if record.resumed:
            self._resumes.labels(record.model, record.node).inc()
        for node in record.retried:
            self._retries.labels(record.model, node).inc()
        bound.duration.observe(record.duration_s)
        if record.queued_s is not None:
            bound.queue_wait.observe(record.queued_s)
        if record.operation != "count":  # tokens counted are not tokens computed
            self._count_tokens(bound, record)

    def _count_tokens(self, bound: Bound, record: RequestRecord) -> None:
        bound.prompt_tokens.inc(record.prompt_tokens)
        bound.completion_tokens.inc(record.completion_tokens)
        if record.cached_tokens:
            bound.cached_tokens.inc(record.cached_tokens)
        if record.stream and record.ttft_s is not None:
            bound.ttft.observe(record.ttft_s)
        if record.decode_s and record.completion_tokens > 1:
            bound.rate.observe((record.completion_tokens - 1) / record.decode_s)


def phase(record: RequestRecord) -> str:
    """Return how far a request was when it ended."""
    if record.ttft_s is not None:
        return "answering"
    return "sent" if record.node else "queued"
