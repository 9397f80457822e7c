"""Models: what the catalogue says, what a checkpoint is, what is loaded where."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import attrs

SamplingDefault = Literal["temperature", "top_p", "top_k"]
Status = Literal[
    "loaded", "loading", "unloading", "unloaded", "recovering", "poisoned", "failed", "asleep"
]


@attrs.frozen(kw_only=True)
class ModelSpec:
    """
    One entry of models.toml, or what a load request asks for.

    Attributes:
        source: ``scheme`` or ``scheme:location``; None asks every source whether it knows the id.
        quant: GGUF file tag such as ``Q4_K_M``, case-insensitive.
        vram_mb: Estimate of the memory it takes, until a load measures it.
        min_devices: Devices it needs on one node.
        pinned_on: Nodes it may run on; there it is never evicted.
        priority: Rank for ``eviction.strategy = "priority"``; higher stays.
        ttl_s: The gateway unloads it once nobody has used it for so long; 0 is never.
        preload: The gateway loads it at its start.
        context: Tokens of context to serve at most; None is the checkpoint's own limit.
        defaults: Sampling defaults a client may override.
    """

    id: str
    harness: str | None = None
    source: str | None = None
    quant: str | None = None
    vram_mb: int | None = None
    min_devices: int = 1
    min_device_vram_mb: int = 0
    pinned_on: tuple[str, ...] = ()
    priority: int = 0
    ttl_s: float = 0.0
    preload: bool = False
    context: int | None = None
    defaults: Mapping[SamplingDefault, float] = attrs.field(factory=dict)

    @property
    def scheme(self) -> str | None:
        """The source asked for; None is whichever knows the id."""
        return self.source.partition(":")[0] if self.source else None

    @property
    def location(self) -> str:
        """Where the source is to look: what follows its scheme, else the id."""
        return (self.source or "").partition(":")[2] or self.id


@attrs.frozen(kw_only=True)
class Checkpoint:
    """
    Weights on this host's disk: a ``.gguf`` file, or a folder of config and safetensors.

    Attributes:
        sampling: Sampling defaults its makers recommend, where the files do not say.
    """

    path: Path
    format: Literal["gguf", "safetensors"]
    size_bytes: int
    sampling: Mapping[str, float] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Progress:
    """How far a long job is; `total` 0 means unknown.  Units are bytes for stage ``fetching``."""

    stage: str
    done: int = 0
    total: int = 0


@attrs.frozen(kw_only=True)
class RunningModel:
    """What a harness says of a model it has loaded."""

    used_bytes: int
    context: int
    capabilities: tuple[str, ...] = ("text",)


@attrs.frozen(kw_only=True)
class ModelStats:
    """
    What a model is doing now; rates are tokens per second over the last requests.

    Attributes:
        tokens_total: Tokens generated since its load, also those whose client had left.
    """

    in_flight: int = 0
    queue_depth: int = 0
    max_in_flight: int = 0
    tok_s_prefill: float = 0.0
    tok_s_decode: float = 0.0
    tokens_total: int = 0


@attrs.frozen(kw_only=True)
class LoadedModel:
    """
    A model that holds memory on a device, as an eviction policy sees it; monotonic times.

    Attributes:
        heat: Requests for it there, each of which counts half after ten minutes.
        load_s: How long its last load there took; 0 is unknown.
    """

    id: str
    used_bytes: int
    last_used: float
    priority: int = 0
    heat: float = 0.0
    load_s: float = 0.0


@attrs.frozen(kw_only=True)
class Candidate:
    """
    A node that could answer this request.

    Attributes:
        kv_used_pct: How full its cache of prompts is, if it says so.
    """

    node: str
    in_flight: int = 0
    queued: int = 0
    kv_used_pct: float | None = None


@attrs.frozen(kw_only=True)
class ModelCard:
    """
    A row of ``/v1/models``: what a client may ask for.

    Attributes:
        context: Tokens of prompt and answer together, where that is known.
        output: Tokens of an answer at most, where that is known.
        loaded: It answers at once.
        used_bytes: Memory it takes where it is loaded; 0 is unknown.
        extra: Members beyond the dialect's own, JSON values.
    """

    id: str
    owned_by: str = "cortex"
    context: int | None = None
    output: int | None = None
    loaded: bool = False
    capabilities: tuple[str, ...] = ()
    used_bytes: int = 0
    extra: Mapping[str, object] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class RequestRecord:
    """
    One finished request; exactly one each, also for a client that left.

    Attributes:
        ttft_s: From its arrival to the first byte of the answer, seconds.
        queued_s: How long it waited for a node to ask; None if it never got to that.
        decode_s: What the answer took after its first token, where that is known.
        cached_tokens: Those of `prompt_tokens` that were not computed again.
        retried: Nodes that were asked before, and had it sent elsewhere.
        resumed: A node died while it answered, and another, `node`, went on.
    """

    id: str
    model: str
    node: str
    dialect: str
    operation: str = "chat"
    principal: str = ""
    status: int
    outcome: Literal["ok", "error", "cancelled"]
    stream: bool = False
    ttft_s: float | None
    queued_s: float | None = None
    decode_s: float | None = None
    duration_s: float
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    retried: tuple[str, ...] = ()
    resumed: bool = False
