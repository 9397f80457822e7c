"""What the gateway's own routes take and answer, beside `cortex.fleet`; and the table of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import attrs
import msgspec

from cortex import logs
from cortex.api import Shape
from cortex.fleet.node import Explanation, Fleet, RequestState
from cortex.gateway.ledger import Usage
from cortex.gateway.reload import Difference
from cortex.openapi import STREAM, Path, Program
from cortex.plugins import Failure

MAX_DAYS = 3660


class ModelBody(msgspec.Struct):
    """``POST /api/v1/models/{id}/load`` and ``unload``."""

    node: str | None = None
    force: bool = False


class PinBody(msgspec.Struct):
    """``POST /api/v1/models/{id}/pin`` and ``unpin``."""

    node: str | None = None


class NodeCount(msgspec.Struct):
    """How many nodes answer, of all."""

    healthy: int
    total: int


class Unservable(msgspec.Struct):
    """A model that is loaded and cannot answer."""

    node: str
    model: str
    reason: str | None


class GatewayHealth(msgspec.Struct):
    """``GET /health``."""

    status: Literal["ok", "degraded", "impaired", "draining"]
    nodes: NodeCount
    unservable: list[Unservable]


class OfferRow(msgspec.Struct):
    """What a plugin offers."""

    kind: str
    name: str
    plugin: str
    summary: str


class PluginRows(msgspec.Struct):
    """``GET /api/v1/plugins``."""

    plugins: list[str]
    offers: list[OfferRow]
    failures: list[Failure]


class UsageRows(msgspec.Struct):
    """``GET /api/v1/usage``."""

    since: str
    usage: list[Usage]


class ModelMoved(msgspec.Struct):
    """``POST /api/v1/models/{id}/load`` and ``unload``."""

    status: Literal["loaded", "unloaded"]
    model_id: str
    node: str | None


class Pinned(msgspec.Struct):
    """``POST /api/v1/models/{id}/pin`` and ``unpin``."""

    model_id: str
    pinned_on: tuple[str, ...]


class InForce(msgspec.Struct):
    """``GET /api/v1/config``."""

    config: dict[str, Any]
    catalogue: dict[str, Any]


class Drained(msgspec.Struct):
    """``POST /api/v1/nodes/{name}/drain`` and ``resume``."""

    node: str
    drained: bool
    in_flight: int


class RequestRows(msgspec.Struct):
    """``GET /api/v1/requests``."""

    requests: list[RequestState]


class Cancelled(msgspec.Struct):
    """``DELETE /api/v1/requests/{id}``."""

    id: str
    cancelled: int


Days = Annotated[int, msgspec.Meta(ge=1, le=MAX_DAYS)]
MOVE = Shape(body=ModelBody, answer=ModelMoved)
PIN = Shape(body=PinBody, answer=Pinned)
DRAIN = Shape(answer=Drained)
PATHS: Mapping[str, Path] = {
    "GET /": Path(summary="Show name and version", shape=Shape(answer=Program)),
    "GET /health": Path(summary="Tell how many nodes answer", shape=Shape(answer=GatewayHealth)),
    "GET /api/v1/fleet": Path(summary="Show the fleet", shape=Shape(answer=Fleet)),
    "GET /api/v1/events": Path(summary="Tell what changes", shape=Shape(stream=STREAM)),
    "GET /api/v1/logs": attrs.evolve(
        logs.PATH,
        shape=attrs.evolve(logs.PATH.shape, query={**logs.PATH.shape.query, "node": str}),
    ),
    "GET /api/v1/plugins": Path(summary="List plugins", shape=Shape(answer=PluginRows)),
    "GET /api/v1/usage": Path(
        summary="Tell what each key used", shape=Shape(answer=UsageRows, query={"days": Days})
    ),
    "POST /api/v1/models/{id}/load": Path(summary="Load a model", shape=MOVE),
    "POST /api/v1/models/{id}/unload": Path(summary="Unload a model", shape=MOVE),
    "POST /api/v1/models/{id}/pin": Path(summary="Pin a model on a node", shape=PIN),
    "POST /api/v1/models/{id}/unpin": Path(summary="Undo that", shape=PIN),
    "GET /api/v1/explain": Path(
        summary="Explain where a request would go",
        shape=Shape(answer=Explanation, query={"model": str}),
    ),
    "GET /api/v1/config": Path(summary="Show what is in force", shape=Shape(answer=InForce)),
    "POST /api/v1/reload": Path(
        summary="Read the configuration again", shape=Shape(answer=Difference)
    ),
    "POST /api/v1/nodes/{name}/drain": Path(summary="Give a node nothing new", shape=DRAIN),
    "POST /api/v1/nodes/{name}/resume": Path(summary="Undo that", shape=DRAIN),
    "GET /api/v1/requests": Path(summary="List requests", shape=Shape(answer=RequestRows)),
    "DELETE /api/v1/requests/{id}": Path(summary="Cancel a request", shape=Shape(answer=Cancelled)),
}
