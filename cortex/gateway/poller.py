"""Asks every neuron how it is, all at once, for as long as the gateway runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from cortex.config.schema import UpstreamEntry
from cortex.errors import CortexError, RemoteError
from cortex.fleet.node import Discovery, Health, Limit, NodeModel
from cortex.gateway.neuron_client import UpstreamSlow
from cortex.gateway.node import Node
from cortex.gateway.nodes import Nodes

POLL_S = 2.0
POLL_WHILE_LOADING_S = 0.3
FIRST_ROUND_S = 2.0


async def poll(node: Node, nodes: Nodes) -> None:
    """
    Ask one neuron once and take in what it says.

    Its discovery is read again when its uptime goes backwards: it is another process.
    """
    try:
        if isinstance(node.entry, UpstreamEntry):
            nodes.answered(node, Health(status="ok"), await ask_upstream(node, node.entry))
            return
        health: Health = await node.client.get("/health", Health)
        models: Sequence[NodeModel] = await node.client.get("/models", tuple[NodeModel, ...])
        restarted = node.health is None or health.uptime_secs < node.health.uptime_secs
        if node.discovery is None or restarted:
            node.discovery = await node.client.get("/discovery", Discovery)
        if restarted:
            node.breaker.closes()  # what the other process did is not held against this one
    except UpstreamSlow as error:
        nodes.missed(node, str(error), is_slow=True)
    except RemoteError as error:
        nodes.missed(node, f"{node.entry.endpoint} says: {error}")
    except CortexError as error:
        nodes.missed(node, str(error))
    except Exception as error:  # noqa: BLE001 - a neuron that talks nonsense is as good as silent
        nodes.missed(node, f"{node.entry.endpoint} talks nonsense: {error}")
    else:
        nodes.answered(node, health, models)


class UpstreamModel(msgspec.Struct):
    """A row of an upstream's ``/v1/models``; the limit as vLLM and as llama.cpp say it."""

    id: str
    max_model_len: int | None = None
    context_length: int | None = None
    meta: dict[str, Any] | None = None

    @property
    def context(self) -> int:
        """Tokens, or 0."""
        in_meta = (self.meta or {}).get("n_ctx")
        return self.max_model_len or self.context_length or int(in_meta or 0)


class UpstreamModels(msgspec.Struct):
    """``GET /v1/models`` of an upstream."""

    data: list[UpstreamModel]


async def ask_upstream(node: Node, entry: UpstreamEntry) -> list[NodeModel]:
    """Return the models of a server that is not ours, which need not list them if we know them."""
    node.discovery = Discovery(hostname=entry.name, dialects=entry.dialects)
    try:
        listed = (await node.client.get("/v1/models", UpstreamModels)).data
    except RemoteError:
        if entry.models is None:
            raise
        listed = []
    contexts = {model.id: model.context for model in listed}
    served = contexts if entry.models is None else entry.models
    return [
        NodeModel(id=name, status="loaded", limit=Limit(context=contexts.get(name, 0)))
        for name in served
    ]


async def poll_forever(node: Node, nodes: Nodes) -> None:
    """
    Poll one neuron, faster while it loads something, and end what it has forgotten.

    One that has left the fleet is done once its last request is.
    """
    while not node.gone or node.in_flight.total():
        if not node.gone:
            await poll(node, nodes)
        for exchange in list(node.exchanges):
            exchange.tick()
        loading = any(model.status == "loading" for model in node.models.values())
        await asyncio.sleep(POLL_WHILE_LOADING_S if loading and node.healthy else POLL_S)
    node.client.close()


async def first_round(new: Iterable[Node], nodes: Nodes) -> None:
    """Poll *new* ones of *nodes* once, bounded: who does not answer must not hold up the rest."""
    async with asyncio.TaskGroup() as tasks:
        polls = [tasks.create_task(poll(node, nodes)) for node in new]
        if polls:
            _, late = await asyncio.wait(polls, timeout=FIRST_ROUND_S)
            for task in late:
                task.cancel()
