"""Models: what the catalogue says, what a checkpoint is, what is loaded where."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import attrs

SamplingDefault = Literal["temperature", "top_p", "top_k", "min_p", "repetition_penalty"]
SAMPLING_BOUNDS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "temperature": (0, 2),
        "top_p": (1e-9, 1),
        "top_k": (-1, 1 << 31),
        "min_p": (0, 1),
        "repetition_penalty": (1e-9, 10),
    }
)
Status = Literal[
    "loaded", "loading", "unloading", "unloaded", "recovering", "poisoned", "failed", "asleep"
]

QUANTS_AT_LOAD = ("fp8", "int8")


@attrs.frozen(kw_only=True)
class ModelSpec:
    """
    One entry of models.toml, or what a load request asks for.

    Attributes:
        id: The name clients use; unique.
        harness: What runs it: ``torch``, ``echo``, or a plugin's; not set is ``torch``.
        source: Where its weights come from: ``package``, ``file``, ``hf`` or a plugin's, alone or
            with a place, as in ``hf:owner/name@revision``, ``file:/srv/x.gguf``,
            ``package:name==version``; not set asks every source whether it knows the id.
        quant: Which GGUF file to take where there are several, by its tag, such as ``Q4_K_M``; or
            ``fp8`` or ``int8``: keep weights in eight bits.  In any case.
        vram_mb: Memory it takes in MiB, until a load has measured it; placement goes by it.
        min_devices: Devices of one node it needs, which harness `torch` splits it over.
        min_device_vram_mb: Memory each of its devices has to have, in MiB.
        pinned_on: Nodes it may run on; it is never evicted there.  Empty is any node.
        priority: Its rank for eviction strategy ``priority``; higher stays.
        ttl_s: It is unloaded once nobody has used it for so many seconds, but not where it is
            pinned; 0 is never.
        preload: The gateway loads it at its start, and tries again until that has worked; once it
            was loaded it can be evicted like any other.
        context: Tokens of context to serve at most; not set is the checkpoint's own limit.
        defaults: ``temperature``, ``top_p``, ``top_k``, ``min_p`` and ``repetition_penalty`` for
            requests that do not say.
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

    @defaults.validator
    def _are_possible(self, _: object, defaults: Mapping[SamplingDefault, float]) -> None:
        for name, value in defaults.items():
            least, most = SAMPLING_BOUNDS[name]
            if not least <= value <= most:
                raise ValueError(f"defaults: {name}: expected {least:g} to {most:g}, got {value:g}")

    @property
    def file_quant(self) -> str | None:
        """Which of several files is asked for, by its tag."""
        return None if self.load_quant else self.quant

    @property
    def load_quant(self) -> str | None:
        """How weights are to be quantised while they are loaded."""
        name = (self.quant or "").lower()
        return name if name in QUANTS_AT_LOAD else None

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
    """
    How far a long job is; `total` 0 means unknown.  Units are bytes, where it is about bytes.

    Attributes:
        text: All of a checkpoint but its weights, told once and while those have yet to come.
    """

    stage: str
    done: int = 0
    total: int = 0
    text: Checkpoint | None = None


@attrs.frozen(kw_only=True)
class RunningModel:
    """What a harness says of a model it has loaded."""

    used_bytes: int
    context: int
    capabilities: tuple[str, ...] = ("text",)


@attrs.frozen(kw_only=True)
class ModelStats:
    """
    What a model is doing now; rates are tokens per second.

    Attributes:
        tok_s_prefill: Of one request, smoothed over the last; so is *tok_s_decode*.
        tokens_total: Tokens generated since its load, also those whose client had left.
        running: Requests its engine computes; None if that does not say, as with all that follows.
        waiting: Requests that wait in the engine for room in its cache.
        kv_used_pct: The share of its cache of keys and values that requests hold.
        prefix_hit_pct: The share of prompt tokens that were found in the cache.
        prompt_tokens_total: Tokens of prompts since its load; *cached_tokens_total* were found.
        preemptions_total: How often a request gave its part of the cache back, since its load.
        drafted_tokens_total: Tokens that were guessed and tried since its load;
            *accepted_tokens_total* came true.
        tok_s: Generated by all requests together, now.
        body: How it is run, for people.
    """

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
