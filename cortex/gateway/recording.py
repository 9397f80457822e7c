"""What will be said of a request once it is over."""

from __future__ import annotations

from http import HTTPStatus
from time import perf_counter
from typing import TYPE_CHECKING, Literal

import attrs

from cortex.api import Operation
from cortex.chat.events import Usage
from cortex.chat.request import RequestHead
from cortex.fleet.model import RequestRecord
from cortex.fleet.principal import Principal
from cortex.gateway.hold import Hold
from cortex.gateway.relay import Exchange

if TYPE_CHECKING:
    from cortex.spans import Span

MOST_TOKENS = 1 << 31  # of a request; their sums are counted too


@attrs.define(kw_only=True)
class Recording:
    """
    One request, from its head to its end.

    Attributes:
        asked: What its client calls the model.
        code: Of the error that was its answer, if it was one of ours.
        is_cold: It waited for a load.
        span: It is traced.
    """

    id: str
    dialect: str
    operation: Operation
    principal: Principal
    began: float = attrs.field(factory=perf_counter)
    asked: str = ""
    model: str = ""
    node: str = ""
    status: int = 0
    outcome: Literal["ok", "error", "cancelled"] = "error"
    code: str = ""
    is_cold: bool = False
    resumed: bool = False
    exchange: Exchange | None = None
    hold: Hold | None = None
    stream: bool = False
    queued_s: float | None = None
    retried: tuple[str, ...] = ()
    span: Span | None = None

    def head(self, stream: bool, affinity: str) -> RequestHead:
        """Return what the request is routed by; its model is resolved."""
        self.stream = stream
        return RequestHead(
            id=self.id,
            model=self.model,
            stream=stream,
            dialect=self.dialect,
            operation=self.operation,
            principal=self.principal.name,
            priority=self.principal.priority,
            weight=self.principal.weight,
            affinity=affinity,
        )

    def waited(self, since: float) -> None:
        """Add a wait for a node, which began at *since* and is over."""
        self.queued_s = (self.queued_s or 0.0) + perf_counter() - since

    def goes_to(self, node: str, how: str) -> None:
        """Note where it is sent, after where it was sent before; *how* it had a turn there."""
        self.is_cold |= how.endswith("-load")
        if self.node:
            self.retried += (self.node,)
        self.node = node

    def close(self) -> RequestRecord:
        """Return the record; the request is over now."""
        now, exchange = perf_counter(), self.exchange
        usage, ttft_s, decode_s = Usage(), None, None
        if exchange is not None:
            usage = exchange.usage() or Usage(completion_tokens=exchange.tokens())
            if exchange.first_byte_s and exchange.status < HTTPStatus.BAD_REQUEST:
                ttft_s = exchange.first_byte_s - self.began
                if self.stream and not self.resumed:  # its first byte may be a keep-alive's
                    prefilled_s = (usage.queue_ms + usage.prefill_ms) / 1e3
                    ttft_s = max(ttft_s, (self.queued_s or 0.0) + prefilled_s)
                decode_s = now - self.began - ttft_s if self.stream else None
        record = RequestRecord(
            id=self.id,
            model=self.model,
            node=self.node,
            dialect=self.dialect,
            operation=self.operation,
            principal=self.principal.name,
            status=self.status,
            outcome=self.outcome,
            stream=self.stream,
            ttft_s=ttft_s,
            queued_s=self.queued_s,
            decode_s=usage.decode_ms / 1e3 or decode_s,
            duration_s=now - self.began,
            prompt_tokens=countable(usage.prompt_tokens),
            completion_tokens=countable(usage.completion_tokens),
            cached_tokens=countable(usage.cached_tokens),
            retried=self.retried,
            resumed=self.resumed,
        )
        if self.span is not None:
            self.span.finished(record, asked=self.asked, code=self.code, is_cold=self.is_cold)
        return record


def countable(tokens: int) -> int:
    """Return how many tokens count of so many, which a server that is not ours may have told."""
    return min(max(tokens, 0), MOST_TOKENS)
