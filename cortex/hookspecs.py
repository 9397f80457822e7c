"""
Every hook cortex calls.

Three families, told apart by their prefix:

``cortex_register_*``
    Called once at start.  Offer named implementations; the configuration picks one by name.
``cortex_choose_*``
    A decision (``firstresult``): return None to pass.  Built-ins go last.
``cortex_on_*``
    A notification.  What you raise is logged against your plugin and dropped.

No hook runs for each request on the way to the first byte: what a hook chose is called directly.
Hooks run on the event loop of their process and must not block.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal

from prometheus_client.registry import CollectorRegistry

from cortex import hookspec
from cortex.api import (
    Authenticator,
    Dialect,
    EvictionPolicy,
    Harness,
    Register,
    RoutingStrategy,
    Source,
)
from cortex.fleet.model import ModelSpec, RequestRecord
from cortex.fleet.node import Device, NodeModel

Role = Literal["gateway", "neuron"]


@hookspec
def cortex_register_routing_strategies(register: Register[RoutingStrategy]) -> None:
    """
    Offer routing strategies, chosen by ``[routing] strategy``; they take no options.

    One instance is built at start, and its `choose` is called for each request that has more than
    one candidate, or for each one at all if the strategy has `reads_affinity`.  Candidates are
    healthy, have the model loaded, and are never empty.  What it raises, or chooses that is not
    among them, fails the request with ``plugin``; the log has the traceback.
    """


@hookspec
def cortex_register_eviction_policies(register: Register[EvictionPolicy]) -> None:
    """
    Offer eviction policies, chosen by ``[eviction] strategy``; they take no options.

    Busy and pinned models, and those younger than ``min_residency_s``, are left out before the
    call.  What it raises fails the load, and who waits for it, with ``plugin``; the log has the
    traceback.
    """


@hookspec
def cortex_register_dialects(register: Register[Dialect]) -> None:
    """
    Offer API dialects; all of them are served, unless ``[gateway] dialects`` names some.

    Gateway and every neuron the plugin is installed on serve them; they take no options, and do no
    I/O.  Two that claim one method and path are an error at start, unless an `Endpoint` of one asks
    for a header.
    """


@hookspec
def cortex_register_harnesses(register: Register[Harness]) -> None:
    """
    Offer inference harnesses, chosen by a model's ``harness`` key.

    The factory gets the options of ``[harness.NAME]``, if it has some, and a
    `cortex.api.HarnessHost`.  The module must import without its engine: import torch, or start a
    process, in the factory.
    """


@hookspec
def cortex_register_sources(register: Register[Source]) -> None:
    """
    Offer places weights come from, chosen by a model's ``source`` key.

    A model without one goes to the first source that knows its id.  The factory gets the options of
    ``[sources.NAME]``, if it has some, and the path of the cache.
    """


@hookspec
def cortex_register_authenticators(register: Register[Authenticator]) -> None:
    """
    Offer ways to tell who asks; ``[auth] use`` names those to ask, in order.

    The factory gets the options of ``[auth.options.NAME]``, if it has some, and the keys of
    ``[[auth.keys]]``.  `identify` runs for each request before anything else, and must not wait:
    what needs the network, such as the public keys of an identity provider, is fetched beforehand
    in `cortex_lifespan`.  Limits go by the name of the principal it returns, and hold as that
    principal says them.
    """


@hookspec
def cortex_register_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """
    Add subcommands to *commands*, argparse's; set ``run=callable(args) -> int`` as each's default.

    Asked only when the command line names a command cortex does not know.
    """


@hookspec
def cortex_register_collectors(registry: CollectorRegistry, role: Role) -> None:
    """
    Add Prometheus collectors to the *registry* whose metrics the process exposes.

    *role* is ``gateway`` or ``neuron``, here and wherever it is an argument.
    """


@hookspec(firstresult=True)
def cortex_choose_model(name: str, known: Sequence[str]) -> str | None:
    """Translate a model name that is neither an id nor an alias into one of *known*, or pass."""


@hookspec(firstresult=True)
def cortex_choose_harness(spec: ModelSpec, device: Device) -> str | None:
    """
    Name the harness for a model that names none; the default is ``torch``.

    *spec* is a `cortex.fleet.model.ModelSpec`, *device* the node's first
    `cortex.fleet.node.Device`.
    """


@hookspec
def cortex_lifespan(role: Role) -> AbstractAsyncContextManager[None] | None:
    """Return a context manager to be entered at start and left, in reverse order, at stop."""


@hookspec
def cortex_on_request_finished(record: RequestRecord) -> None:
    """
    Learn that a request of the gateway ended, well or not, after its last byte was sent.

    There is exactly one *record* a request.
    """


@hookspec
def cortex_on_model_changed(node: str, model: NodeModel) -> None:
    """
    Learn that a model changed its status, as the gateway sees it; gateway only.

    *model* is a `cortex.fleet.node.NodeModel`.
    """


@hookspec
def cortex_on_node_changed(node: str, healthy: bool) -> None:
    """Learn that a node went out of service or came back, as the gateway sees it; gateway only."""
