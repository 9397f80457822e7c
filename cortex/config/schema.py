"""
What cortex.toml, models.toml and neuron.toml may say; an unknown key is an error.

A key is here only if it does something.  What docstrings say of it is in `docs/configuration.md`,
which `docs/reference.py` writes the tables of.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import attrs

from cortex.fleet.model import ModelSpec
from cortex.fleet.principal import Key, Limits


@attrs.frozen
class Address:
    """A ``host:port`` to listen on; port 0 lets the system choose."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isdecimal() or int(port) > 65535:  # noqa: PLR2004
            raise ValueError(f"expected host:port, got {text!r}")
        return cls(host.strip("[]"), int(port))

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@attrs.frozen(kw_only=True)
class PluginSettings:
    """
    ``[plugins]``: where third-party plugins are found and which of them are used.

    Attributes:
        directories: Folders plugins were installed into with ``pip install --target``, beside the
            interpreter's own and ``$XDG_DATA_HOME/cortex/plugins``.
        block: Plugins never to load, by name; built-in ones too.
        require: Plugins without which not to start.
        only: Of third-party plugins, load these and no other; an empty list loads none.
            ``CORTEX_PLUGINS=a,b`` goes first.
    """

    directories: tuple[Path, ...] = ()
    block: tuple[str, ...] = ()
    require: tuple[str, ...] = ()
    only: frozenset[str] | None = None


@attrs.frozen(kw_only=True)
class RepliesSection:
    """
    ``[replies]``: answers kept for requests that go on from them.

    As read from a file `path` is always set; without one nothing goes to the disk.

    Attributes:
        path: The database; not set is ``cortex/gateway-replies.db`` or ``cortex/neuron-replies.db``
            in ``$XDG_STATE_HOME``.
        max_count: Answers at most; 0 keeps none.
        max_mb: What they may take together, in MiB.
        ttl_s: How long an answer is kept, in seconds.
    """

    path: Path | None = None
    max_count: int = 10_000
    max_mb: int = 1024
    ttl_s: float = 2_592_000.0


@attrs.frozen(kw_only=True)
class TlsSection:
    """
    ``[gateway.tls]``, and ``[tls]`` of a neuron: what a listener shows, all PEM.

    Attributes:
        cert: The certificate to show, with those between it and the root; PEM, as the others are.
        key: Its private key, without a password.
        client_ca: If set, clients need a certificate that one of these signed; who comes without, a
            gateway or not, is refused.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None


@attrs.frozen(kw_only=True)
class GatewaySection:
    """
    ``[gateway]``; without `tls` it speaks plain HTTP.

    As read from a file `state_path` is always set; without one nothing goes to the disk.

    Attributes:
        listen: Where clients come to; port 0 lets the system choose.
        metrics_listen: Where ``/metrics`` and ``/healthz`` are, in a thread of their own.
        models_config: The catalogue; a cortex.toml whose catalogue does not exist is an error.
        dialects: Names of the dialects to serve; not set serves every one offered.
        drain_s: How long answers under way may go on once the gateway is told to stop, in seconds.
        state_path: A small file for what the gateway learns, which is the memory models take; not
            set is ``cortex/gateway-state.json`` in ``$XDG_STATE_HOME``.  Pins and drains by hand
            are beside it, in a file that ends in ``.orders.json``.  Each gateway needs its own.
    """

    listen: Address = Address("0.0.0.0", 31313)  # noqa: S104 - an endpoint is there to be reached
    metrics_listen: Address = Address("0.0.0.0", 31314)  # noqa: S104
    models_config: Path = Path("models.toml")
    dialects: tuple[str, ...] | None = None
    drain_s: float = 60.0
    state_path: Path | None = None
    tls: TlsSection | None = None


@attrs.frozen(kw_only=True)
class RoutingSection:
    """
    ``[routing]``.

    Attributes:
        strategy: Which of the nodes that have a model loaded gets a request: ``least-loaded``,
            ``round-robin``, ``prefix-affinity``, or a plugin's.
        resume: A stream whose node dies goes on from another node that has the model, if it can.
    """

    strategy: str = "least-loaded"
    resume: bool = True


@attrs.frozen(kw_only=True)
class EvictionSection:
    """
    ``[eviction]``.

    Attributes:
        strategy: What goes when a model needs room: ``lru`` (longest unused), ``priority`` (that,
            among what ranks no higher), or a plugin's.
        min_residency_s: A model is not evicted sooner than this after its load, in seconds.
        max_turn_s: Seconds a model waits for room before it takes a turn from models in use: those
            finish the requests they have begun, and the rest of theirs wait in turn.
        defrag_after_cycles: Models that went from a device after which it is re-packed once it is
            idle; 0 is never.
    """

    strategy: str = "lru"
    defrag_after_cycles: int = 50
    min_residency_s: float = 20.0
    max_turn_s: float = 30.0


@attrs.frozen(kw_only=True)
class QueueSection:
    """
    ``[queue]``: requests that wait for a model, per model, and how long.

    Attributes:
        max_depth: Requests that may wait for one model, for its load or for a seat; the next is
            refused with ``queue_full``.
        max_wait_s: Seconds a request waits for a load or a seat, and a load for room; then
            ``model_loading``, ``queue_timeout`` or ``no_node_available``.
    """

    max_depth: int = 512
    max_wait_s: float = 600.0


@attrs.frozen(kw_only=True)
class NodeEntry:
    """
    Where a node is, and what it takes to talk to it.

    Attributes:
        name: What it is called in ``pinned_on``, headers, metrics and commands; unique among
            neurons and upstreams.
        endpoint: Where it listens, ``http://host:port`` or ``https://host:port``, with a path if it
            is behind a proxy.
        token: Sent as ``Authorization: Bearer``; of a neuron, the ``token`` of its neuron.toml.
        ca: Of an https endpoint: the certificates that may have signed its own, PEM; not set is the
            system's.
        client_cert: A certificate to show it, PEM.
        client_key: Its private key, PEM; not set is in ``client_cert``.
    """

    name: str
    endpoint: str
    token: str | None = None
    ca: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None


@attrs.frozen(kw_only=True)
class NeuronEntry(NodeEntry):
    """``[[neurons]]``: one node of the fleet."""


@attrs.frozen(kw_only=True)
class UpstreamEntry(NodeEntry):
    """
    ``[[upstreams]]``: a server that is not ours, and answers for models it has by itself.

    Attributes:
        endpoint: Where it listens, ``http://host:port`` or ``https://host:port``; a ``/v1`` at the
            end may stand or not.
        dialects: What it speaks; clients of other chat dialects are translated, in both directions.
        models: The models it serves; not set is whatever its ``/v1/models`` lists.
    """

    dialects: tuple[str, ...] = ("openai-chat",)
    models: tuple[str, ...] | None = None


@attrs.frozen(kw_only=True)
class AuthSection:
    """
    ``[auth]``: who may ask; `keys` and `anonymous` have tables of their own.

    Attributes:
        require: Refuse whoever is not known, with ``invalid_api_key``; else such a client is
            anonymous, which suits programs that insist on sending some key.
        use: Who is asked whose a request is, in order: ``keys``, or a plugin's authenticator.
        options: ``[auth.options.NAME]``, the options of an authenticator, which are typed by it.
    """

    require: bool = False
    use: tuple[str, ...] = ("keys",)
    anonymous: Limits = attrs.field(factory=Limits)
    keys: tuple[Key, ...] = ()
    options: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)

    @property
    def is_open(self) -> bool:
        """Whether nobody is known, so that everybody may do everything."""
        return not self.keys and self.use == ("keys",)


@attrs.frozen(kw_only=True)
class LedgerSection:
    """
    ``[ledger]``: usage by key, model and day.

    As read from a file `path` is always set; without one nothing goes to the disk.

    Attributes:
        path: The database; not set is ``cortex/gateway-ledger.db`` in ``$XDG_STATE_HOME``.
    """

    path: Path | None = None


@attrs.frozen(kw_only=True)
class AuditSection:
    """
    ``[audit]``: who did what, in lines of JSON.

    Attributes:
        path: The file; not set keeps no audit log, and one that cannot be written is an error at
            the start.
    """

    path: Path | None = None


@attrs.frozen(kw_only=True)
class TracingSection:
    """
    ``[tracing]``: spans of requests, sent to an OpenTelemetry collector.

    Attributes:
        endpoint: Where the collector takes OTLP over HTTP, as ``http://collector:4318``;
            ``/v1/traces`` is added.  Not set is ``OTEL_EXPORTER_OTLP_ENDPOINT``; where that is not
            set either nothing is traced.
        sample: How much of what no client has decided about is traced, from 0 to 1.
        service: The ``service.name`` of its spans; not set is ``OTEL_SERVICE_NAME``, else
            ``cortex-gateway`` or ``cortex-neuron``.
    """

    endpoint: str | None = None
    sample: float = 1.0
    service: str | None = None


@attrs.frozen(kw_only=True)
class GatewayConfig:
    """cortex.toml, and with it models.toml."""

    gateway: GatewaySection = attrs.field(factory=GatewaySection)
    routing: RoutingSection = attrs.field(factory=RoutingSection)
    eviction: EvictionSection = attrs.field(factory=EvictionSection)
    queue: QueueSection = attrs.field(factory=QueueSection)
    replies: RepliesSection = attrs.field(factory=RepliesSection)
    auth: AuthSection = attrs.field(factory=AuthSection)
    ledger: LedgerSection = attrs.field(factory=LedgerSection)
    audit: AuditSection = attrs.field(factory=AuditSection)
    tracing: TracingSection = attrs.field(factory=TracingSection)
    neurons: tuple[NeuronEntry, ...] = ()
    upstreams: tuple[UpstreamEntry, ...] = ()
    plugins: PluginSettings = attrs.field(factory=PluginSettings)

    @property
    def nodes(self) -> tuple[NeuronEntry | UpstreamEntry, ...]:
        """The fleet: neurons, and servers that are not ours."""
        return (*self.neurons, *self.upstreams)


@attrs.frozen(kw_only=True)
class Catalogue:
    """models.toml."""

    models: tuple[ModelSpec, ...] = ()
    aliases: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class DefaultModel:
    """
    ``[[default_models]]``: a model to load at start.

    Attributes:
        model_id: Its id.
        harness: What runs it.
        source: Where its weights come from.
        quant: Which file to take, or how to keep weights.
        context: Tokens of context to serve at most.
    """

    model_id: str
    harness: str | None = None
    source: str | None = None
    quant: str | None = None
    context: int | None = None


@attrs.frozen(kw_only=True)
class NeuronConfig:
    """
    neuron.toml; `harness` and `sources` have options by name, which are typed by whom they are for.

    Attributes:
        listen: Where the gateway comes to.
        token: If set, every route but ``/``, ``/health`` and ``/openapi.json`` wants it as a
            bearer.
        harnesses: The harnesses to run, in order; not set runs every one offered, and an engine
            that is not installed is then an error.
    """

    listen: Address = Address("0.0.0.0", 13131)  # noqa: S104
    token: str | None = None
    tls: TlsSection | None = None
    default_models: tuple[DefaultModel, ...] = ()
    harnesses: tuple[str, ...] | None = None
    harness: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    sources: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    replies: RepliesSection = attrs.field(factory=RepliesSection)
    tracing: TracingSection = attrs.field(factory=TracingSection)
    plugins: PluginSettings = attrs.field(factory=PluginSettings)
