"""
Nodes on the wire: the bodies of a neuron's ``/health``, ``/discovery`` and ``/models``.

Both ends use these classes, so they cannot drift apart.  Every field that came late has a default
and unknown fields are ignored: old and new interoperate.  ``_mb`` is MiB, ``_s`` and ``_secs`` are
seconds.
"""

from __future__ import annotations

from typing import Literal

import attrs

DeviceState = Literal["ok", "poisoned", "recovering"]


@attrs.frozen(kw_only=True)
class Device:
    """One accelerator (or the host's CPU) now."""

    index: int
    kind: str = "cuda"
    name: str = ""
    vram_total_mb: int = 0
    vram_used_mb: int = 0
    vram_free_mb: int = 0
    utilization_pct: float | None = None
    temp_c: float | None = None
    state: str = "ok"


@attrs.frozen(kw_only=True)
class FailedActivation:
    """A default model that could not be loaded."""

    model_id: str
    error: str


@attrs.frozen(kw_only=True)
class Activation:
    """How far the loads of ``default_models`` are."""

    state: Literal["pre_warming", "ready"] = "ready"
    pending: tuple[str, ...] = ()
    in_progress: str | None = None
    completed: tuple[str, ...] = ()
    failed: tuple[FailedActivation, ...] = ()


@attrs.frozen(kw_only=True)
class ModelHealth:
    """What one model is doing now."""

    id: str
    state: str
    in_flight: int = 0
    queue_depth: int = 0
    max_in_flight: int = 0
    tok_s_prefill: float = 0.0
    tok_s_decode: float = 0.0
    tokens_total: int = 0
    running: int | None = None
    waiting: int | None = None
    kv_used_pct: float | None = None
    prefix_hit_pct: float | None = None
    prompt_tokens_total: int | None = None
    cached_tokens_total: int | None = None
    preemptions_total: int | None = None
    drafted_tokens_total: int | None = None
    accepted_tokens_total: int | None = None
    tok_s: float | None = None
    body: str | None = None


@attrs.frozen(kw_only=True)
class Health:
    """``GET /health``."""

    status: str
    uptime_secs: float = 0.0
    version: str = ""
    devices: tuple[Device, ...] = ()
    activation: Activation = attrs.field(factory=Activation)
    models: tuple[ModelHealth, ...] = ()


@attrs.frozen(kw_only=True)
class DeviceInfo:
    """What never changes about a device while the neuron runs."""

    index: int
    name: str = ""
    vram_total_mb: int = 0
    compute_capability: str | None = None


@attrs.frozen(kw_only=True)
class Discovery:
    """``GET /discovery``."""

    hostname: str
    os: str = ""
    kernel: str = ""
    version: str = ""
    cuda_version: str | None = None
    driver_version: str | None = None
    devices: tuple[DeviceInfo, ...] = ()
    harnesses: tuple[str, ...] = ()
    dialects: tuple[str, ...] = ()
    cuda_unavailable_reason: str | None = None

    @property
    def lacks_driver(self) -> bool:
        """Whether the host has no driver of NVIDIA's, nor, most likely, a GPU."""
        return "LibraryNotFound" in (self.cuda_unavailable_reason or "")


@attrs.frozen(kw_only=True)
class Limit:
    """Token limits of a model as it is loaded."""

    context: int = 0
    output: int = 0


@attrs.frozen(kw_only=True)
class Servable:
    """Whether a loaded model can answer, and if not, why."""

    ok: bool = True
    reason: str | None = None


@attrs.frozen(kw_only=True)
class NodeModel:
    """One entry of ``GET /models``.  Only status ``loaded`` is routable."""

    id: str
    status: str
    harness: str = ""
    devices: tuple[int, ...] = ()
    vram_used_mb: int = 0
    capabilities: tuple[str, ...] = ()
    limit: Limit = attrs.field(factory=Limit)
    progress: float | None = None
    stage: str | None = None
    eta_s: float | None = None
    last_used_s: float | None = None
    servable: Servable = attrs.field(factory=Servable)
    error: str | None = None
    endpoint: str | None = None

    @property
    def routable(self) -> bool:
        return self.status == "loaded" and self.servable.ok


@attrs.frozen(kw_only=True)
class LogLine:
    """
    One entry of a program's log.

    Attributes:
        number: Counts from the program's start.
        time: Unix seconds.
        level: ``debug``, ``info``, ``warning`` or ``error``.
        logger: The module that says it.
    """

    number: int
    time: float
    level: str
    logger: str
    message: str


@attrs.frozen(kw_only=True)
class LoadJob:
    """A load the gateway has under way."""

    model: str
    node: str | None = None
    stage: str = "placing"
    progress: float | None = None
    eta_s: float | None = None
    waiting: int = 0
    evicting: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class FleetNode:
    """
    One node as the gateway sees it; `health` is the last answer, stale if not `healthy`.

    Attributes:
        drained: It gets no new requests and no loads; an operator said so.
        in_flight: Requests of this gateway under way there.
    """

    name: str
    endpoint: str
    healthy: bool
    drained: bool = False
    in_flight: int = 0
    error: str | None = None
    health: Health | None = None
    discovery: Discovery | None = None
    models: tuple[NodeModel, ...] = ()


@attrs.frozen(kw_only=True)
class Fleet:
    """``GET /api/v1/fleet`` of the gateway."""

    version: str
    uptime_s: float
    nodes: tuple[FleetNode, ...] = ()
    loads: tuple[LoadJob, ...] = ()
    catalogue: tuple[str, ...] = ()
    aliases: dict[str, str] = attrs.field(factory=dict)
    pins: dict[str, tuple[str, ...]] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class RequestState:
    """
    One request of the gateway, under way or over.

    Attributes:
        state: ``queued``, ``loading``, ``sent`` (its node has said nothing yet) or ``answering``;
            once it is over ``ok``, ``error`` or ``cancelled``.
        age_s: Since it came.
        status: Of its answer; 0 while there is none.
        completion_tokens: While it goes on, the events of its stream.
    """

    id: str
    state: str
    model: str = ""
    node: str = ""
    dialect: str = ""
    operation: str = ""
    principal: str = ""
    status: int = 0
    age_s: float = 0.0
    duration_s: float | None = None
    ttft_s: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


@attrs.frozen(kw_only=True)
class Verdict:
    """
    What one node is to a model now.

    Attributes:
        verdict: ``serves``, ``full`` (it serves, and has no seat free), ``fits``, ``evicts`` (it
            would fit after `evict` went) or ``no``.
        devices: Where it would be loaded.
    """

    node: str
    verdict: str
    reason: str | None = None
    status: str | None = None
    in_flight: int = 0
    queued: int = 0
    pinned: bool = False
    devices: tuple[int, ...] = ()
    evict: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Explanation:
    """
    What would become of a request for a model now.

    Attributes:
        how: ``loaded`` (`node` answers), ``queued`` (for a seat), ``joined-load`` (on `node`),
            ``cold-load`` (on `node`) or ``nowhere``.
        queued: Requests that wait for the model already.
    """

    model: str
    how: str
    node: str | None = None
    reason: str | None = None
    queued: int = 0
    load: LoadJob | None = None
    nodes: tuple[Verdict, ...] = ()
