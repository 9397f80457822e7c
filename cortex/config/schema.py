"""
What cortex.toml, models.toml and neuron.toml may say; an unknown key is an error.

A key is here only if it does something.  `docs/configuration.md` documents every one (a test sees
to it).
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
        directories: Folders with installed plugins, relative to the file.
        block: Plugins never to load, built-in ones included.
        require: Plugins without which not to start.
        only: The third-party plugins to load; None loads all (``CORTEX_PLUGINS=a,b``; empty loads
            none).
    """

    directories: tuple[Path, ...] = ()
    block: tuple[str, ...] = ()
    require: tuple[str, ...] = ()
    only: frozenset[str] | None = None


@attrs.frozen(kw_only=True)
class RepliesSection:
    """
    ``[replies]``: answers kept for requests that go on from them.

    Attributes:
        path: The database; as read from a file it is always set, and without one nothing goes to
            the disk.
        max_count: Answers to keep at most; 0 keeps none.
        max_mb: What they may take together, in MiB.
        ttl_s: How long one is kept.
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
        cert: Its certificate, and those between it and the root.
        key: Its private key.
        client_ca: If set, clients need a certificate of one of these.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None


@attrs.frozen(kw_only=True)
class GatewaySection:
    """
    ``[gateway]``; without `tls` it speaks plain HTTP.

    Attributes:
        drain_s: How long answers may go on once the gateway is told to stop.
        state_path: What it has learned; as read from a file it is always set, and without one
            nothing goes to the disk.
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
        resume: A stream whose node dies goes on from another that has the model.
    """

    strategy: str = "least-loaded"
    resume: bool = True


@attrs.frozen(kw_only=True)
class EvictionSection:
    """
    ``[eviction]``.

    Attributes:
        min_residency_s: A model stays at least this long after its load.
        max_turn_s: A model that waits this long for room takes a turn from models in use: they
            finish what they have begun, and wait in turn.
        defrag_after_cycles: Models gone from a device after which it is re-packed once it is idle;
            0 is never.
    """

    strategy: str = "lru"
    defrag_after_cycles: int = 50
    min_residency_s: float = 20.0
    max_turn_s: float = 30.0


@attrs.frozen(kw_only=True)
class QueueSection:
    """``[queue]``: requests that wait for a model, per model, and how long."""

    max_depth: int = 512
    max_wait_s: float = 600.0


@attrs.frozen(kw_only=True)
class NodeEntry:
    """
    Where a node is, and what it takes to talk to it.

    Attributes:
        ca: The certificates that may have signed its own, PEM; None is the system's.
        client_cert: The certificate to show it, PEM.
        client_key: Its private key; None is in `client_cert`.
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
        endpoint: Its address; a ``/v1`` at the end is left out.
        dialects: What it speaks; clients of others are translated.
        models: What it serves; None is whatever its ``/v1/models`` lists.
    """

    dialects: tuple[str, ...] = ("openai-chat",)
    models: tuple[str, ...] | None = None


@attrs.frozen(kw_only=True)
class AuthSection:
    """
    ``[auth]``: who may ask.

    Attributes:
        require: Refuse whoever no authenticator knows; else such a one is anonymous.
        use: Authenticators, in the order they are asked.
        anonymous: What all who are anonymous may do together.
        options: Options by authenticator name; typed by the authenticator.
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

    Attributes:
        path: The database; as read from a file it is always set, and without one nothing goes to
            the disk.
    """

    path: Path | None = None


@attrs.frozen(kw_only=True)
class AuditSection:
    """
    ``[audit]``: who did what.

    Attributes:
        path: A file of JSON lines; without one there is no audit log.
    """

    path: Path | None = None


@attrs.frozen(kw_only=True)
class TracingSection:
    """
    ``[tracing]``: spans of requests, sent to an OpenTelemetry collector.

    Attributes:
        endpoint: Where it takes OTLP over HTTP; without one nothing is traced.
        sample: How much of what no client has decided about is traced, 0 to 1.
        service: What the spans say they are of; None is ``cortex-gateway`` or ``cortex-neuron``.
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
    """``[[default_models]]``: a model to load at start."""

    model_id: str
    harness: str | None = None
    source: str | None = None
    quant: str | None = None
    context: int | None = None


@attrs.frozen(kw_only=True)
class NeuronConfig:
    """
    neuron.toml.

    Attributes:
        token: If set, every route but ``/health`` wants it as a bearer.
        tls: What it listens with; without it speaks plain HTTP.
        harnesses: The harnesses to run, in order; None runs every one offered.
        harness: Options by harness name; typed by the harness.
        sources: Options by source name; typed by the source.
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
