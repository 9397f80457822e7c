"""What will be said of a request once it is over."""

from __future__ import annotations

from time import perf_counter
from typing import Literal

import attrs

from cortex.api import Operation
from cortex.chat.events import Usage
from cortex.chat.request import RequestHead
from cortex.fleet.model import RequestRecord
from cortex.fleet.principal import Principal
from cortex.gateway.hold import Hold
from cortex.gateway.relay import Exchange


@attrs.define(kw_only=True)
class Recording:
    """One request, from its head to its end."""

    id: str
    dialect: str
    operation: Operation
    principal: Principal
    began: float = attrs.field(factory=perf_counter)
    model: str = ""
    node: str = ""
    status: int = 0
    outcome: Literal["ok", "error", "cancelled"] = "error"
    exchange: Exchange | None = None
    hold: Hold | None = None

    def head(self, stream: bool) -> RequestHead:
        """Return what the request is routed by; its model is resolved."""
        return RequestHead(
            id=self.id,
            model=self.model,
            stream=stream,
            dialect=self.dialect,
            operation=self.operation,
            principal=self.principal.name,
            priority=self.principal.priority,
            weight=self.principal.weight,
        )

    def close(self) -> RequestRecord:
        """Return the record; the request is over now."""
        now, exchange = perf_counter(), self.exchange
        usage, ttft_s = Usage(), None
        if exchange is not None:
            usage = exchange.usage() or Usage(completion_tokens=exchange.events)
            if exchange.first_byte_s:
                ttft_s = exchange.first_byte_s - self.began
        return RequestRecord(
            id=self.id,
            model=self.model,
            node=self.node,
            dialect=self.dialect,
            operation=self.operation,
            principal=self.principal.name,
            status=self.status,
            outcome=self.outcome,
            ttft_s=ttft_s,
            duration_s=now - self.began,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        )
