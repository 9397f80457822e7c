"""A loaded model and the way it runs: our steps over a paged cache where that is proven right."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import msgspec
import torch

from cortex.errors import InsufficientVram, UnsupportedArchitecture
from cortex.neuron.engine import probe
from cortex.neuron.engine.batching import Batching
from cortex.neuron.engine.blocks import BLOCK_TOKENS, Blocks, blocks_for
from cortex.neuron.engine.cache import Cache, Heads
from cortex.neuron.engine.drafts import Foreseen, Ngrams
from cortex.neuron.engine.embedding import Embedding
from cortex.neuron.engine.grammar import Grammar
from cortex.neuron.engine.group import Group, least
from cortex.neuron.engine.jobs import Embed, Generate, Load
from cortex.neuron.engine.kernels import kernels_for
from cortex.neuron.engine.layers import decoder_of
from cortex.neuron.engine.leading import Follower, Leader
from cortex.neuron.engine.modules import Modules, record, recurrences
from cortex.neuron.engine.mtp import Mtp, mtp_of
from cortex.neuron.engine.plain import Plain
from cortex.neuron.engine.runner import Runner
from cortex.neuron.engine.shards import INSTEAD
from cortex.neuron.engine.snapshots import Snapshots
from cortex.neuron.engine.stack import Stack
from cortex.neuron.engine.states import Recurrence, slot_bytes
from cortex.neuron.engine.tower import Tower
from cortex.neuron.engine.turns import Turns
from cortex.neuron.engine.weights import Weights

HEADROOM = 0.1  # of the memory a model may take: activations, and what the allocator rounds up
QUANTISED = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
CPU_CACHE_BYTES = 2 << 30  # on a host, whose memory is not the model's alone
STATE_SHARE = 0.25  # of the room for the cache, for states at most; for their snapshots as well
PICTURE_SHARE = 0.05  # for what the tower saw
PICTURE_BYTES = 256 << 20  # at most
SNAPSHOTS = 4  # for each sequence at most
LEAST_TOKENS = 2048  # a cache of fewer is refused, if the model's context has as many


@attrs.frozen(kw_only=True)
class Model:
    """
    A model that can be asked.

    Attributes:
        engine: Answers requests.
        context: Tokens of prompt and answer: what the weights allow and the cache holds.
        body: The way it runs, for people.
        used_bytes: Of weights and cache.
        group: The ranks that run it, each a share.
    """

    weights: Weights
    engine: Batching | Turns | Follower
    context: int
    body: str
    used_bytes: int
    group: Group | None = None


def build(job: Load, weights: Weights, device: torch.device) -> Model:
    """
    Return a model that runs the fastest way that is right for it.

    Raises:
        InsufficientVram: There is no room for a cache.
        torch.OutOfMemoryError: The same, found later.
    """
    plain = partial(
        Model,
        weights=weights,
        engine=Turns(partial(begin, weights, device)),
        context=weights.context,
        used_bytes=weights.used_bytes,
    )
    if weights.pooling is not None:
        return plain(body="plain")
    shards = weights.shards
    group = None if shards is None else shards.group
    recurrent = recurrences(weights.module)
    weights, body, heads, why = _body(weights, recurrent, device, group)
    wanted = "quantised" if job.quant is not None else "split over devices"
    if (job.quant is not None or shards is not None) and not isinstance(body, Stack):
        instead = "" if shards is None else f"; {INSTEAD}"
        raise UnsupportedArchitecture(f"{job.model} cannot be {wanted}: {why}{instead}")
    if body is None:
        return plain(weights=weights, body=f"plain: {why}")
    if isinstance(body, Stack) and job.quant is not None:
        saved = body.quantise(QUANTISED[job.quant])
        weights = attrs.evolve(weights, used_bytes=weights.used_bytes - saved)
    return _stepped(job, weights, body, heads, f"{body.name}: {why}", device)


def _stepped(  # noqa: PLR0917 - what it is made of
    job: Load,
    weights: Weights,
    body: probe.Body,
    heads: dict[int, Heads],
    said: str,
    device: torch.device,
) -> Model:
    """Return a model whose *body* runs steps, with a cache in what room there is."""
    shards, recurrent = weights.shards, recurrences(weights.module)
    group = None if shards is None else shards.group
    mtp, foresees = _mtp(job, weights, body)
    if mtp is not None:
        heads[mtp.layer] = mtp.heads
        weights = attrs.evolve(weights, used_bytes=weights.used_bytes + mtp.used_bytes)
    rows, snapshots = least(group, *count_states(job, weights, recurrent, device))
    slots = 1 + rows * (1 if job.speculation == "off" else 2) + snapshots
    pictures = _picture_bytes(job, weights, device)
    taken = pictures + slots * slot_bytes(recurrent, weights.module.dtype)
    (blocks,) = least(group, count_blocks(job, weights, heads, device, rows=rows, taken=taken))
    cache = Cache(heads, blocks, weights.module.dtype, device, recurrent=recurrent, slots=slots)
    context = min(weights.context, (blocks - 1) * BLOCK_TOKENS)
    kept = Snapshots(1 + rows, snapshots) if recurrent else None
    runner = (Leader if group is not None and group.rank == 0 else Runner)(
        *(body, cache),
        rows=rows,
        blocks=blocks_for(context),
        device=device,
        tower=weights.tower,
        tokens=None if shards is None else shards.tokens,
        mtp=mtp,
        draft_tokens=job.draft_tokens,
    )
    runner.warm_up()
    return Model(
        weights=weights,
        engine=_engine(job, weights, runner, Blocks(blocks), rows, kept, mtp=mtp),
        context=context,
        body=said + foresees,
        used_bytes=weights.used_bytes + cache.used_bytes + pictures,
        group=group,
    )


def _engine(  # noqa: PLR0917 - what it is made of
    job: Load,
    weights: Weights,
    runner: Runner,
    blocks: Blocks,
    rows: int,
    snapshots: Snapshots | None,
    *,
    mtp: Mtp | None,
) -> Batching | Follower:
    """Return what steps: by itself, as the first of a group, or as that says."""
    if weights.shards is not None:
        group = weights.shards.group
        if not isinstance(runner, Leader):
            return Follower(runner, group, weights.tower)
        runner.lead(job.model, group)
    ngrams = None if job.speculation == "off" else partial(Ngrams, job.draft_tokens)
    return Batching(
        runner,
        blocks,
        rows=rows,
        budget_tokens=job.max_batch_tokens,
        end_tokens=weights.end_tokens,
        runs_ahead=weights.module.device.type == "cuda",
        snapshots=snapshots,
        guesser=ngrams if mtp is None else Foreseen,
        foreseen_tokens=0 if mtp is None else job.draft_tokens,
    )


def _mtp(job: Load, weights: Weights, body: probe.Body) -> tuple[Mtp | None, str]:
    """Return the layer of the checkpoint that guesses tokens, if it is wanted; and what is said."""
    if job.speculation != "auto":
        return None, ""
    if not isinstance(body, Stack):
        return None, "; what it says next is guessed by n-grams: it is not fused"
    mtp, why = mtp_of(Path(job.path), weights.module, body)
    by = "its own layer" if mtp is not None else f"n-grams: {why}"
    return mtp, f"; what it says next is guessed by {by}"


def _body(
    weights: Weights,
    recurrent: dict[int, Recurrence],
    device: torch.device,
    group: Group | None,
) -> tuple[Weights, probe.Body | None, dict[int, Heads], str]:
    """
    Return the fastest body that is right, how the layers attend, and what was found.

    Where none is right with pictures, on any rank, the model is taken for one that sees none.
    """
    decoder, blind = decoder_of(weights.module), ""
    own = decoder.config._attn_implementation  # noqa: SLF001 - it has no other name
    if weights.tower is not None:
        try:
            body, heads, why = _proven(weights, recurrent, device, weights.tower)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is: its pictures are not for us
            body, heads, why = None, {}, f"{type(error).__name__}: {error}"
        (sees,) = least(group, int(body is not None))
        if sees:
            return weights, body, heads, why
        text = msgspec.structs.replace(weights.text, sight=None)
        weights, blind = attrs.evolve(weights, tower=None, text=text), f"; no pictures: {why}"
        decoder.set_attn_implementation(own)
    body, heads, why = _proven(weights, recurrent, device)
    if body is None:
        decoder.set_attn_implementation(own)
    return weights, body, heads, why + blind


def _proven(
    weights: Weights,
    recurrent: dict[int, Recurrence],
    device: torch.device,
    tower: Tower | None = None,
) -> tuple[probe.Body | None, dict[int, Heads], str]:
    """Return the same of a model as it is, for pictures if there is a tower."""
    module = weights.module
    tried = probe.sequences(weights.known, device)
    shown = None if tower is None else probe.exhibit(tried, tower)
    wanted = probe.truth(module, tried, shown)
    try:
        noise = probe.noise(module, tried, wanted, shown)
        heads = record(module, tried[0])
        # noise is of layers that attend, if there are any; it adds up so
        noise *= (1 + len(recurrent) / max(len(heads), 1)) ** 0.5
        slots = probe.SLOTS
        trial = Cache(heads, probe.BLOCKS, module.dtype, device, recurrent=recurrent, slots=slots)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is: it goes the plain way
        return None, {}, f"{type(error).__name__}: {error}"
    ways: list[Callable[[], probe.Body]] = [
        lambda: Stack(module, kernels_for(device), weights.shards),
        lambda: Modules(module),
    ]
    if weights.shards is not None:
        del ways[1:]
    said: list[str] = []
    for way in ways:
        body, why = probe.prove(way, trial, tried, wanted, noise, shown=shown)
        if body is not None:
            return body, heads, "; ".join([why, *said])
        said.append(f"not faster: {why}")
    return None, heads, "; ".join(said)


def begin(
    weights: Weights, device: torch.device, job: Generate | Embed, grammar: Grammar | None
) -> Plain | Embedding:
    """Return a request that runs by itself."""
    if isinstance(job, Generate):
        return Plain(job, weights, device, grammar)
    assert weights.pooling is not None  # noqa: S101 - the worker has asked
    return Embedding(job, weights, weights.pooling, device)


def _picture_bytes(job: Load, weights: Weights, device: torch.device) -> int:
    """Return how much of the room is for what the tower saw, if it is to look, and tell it."""
    is_led = weights.shards is not None and weights.shards.group.rank > 0  # rank 0 looks for it
    if weights.tower is None or is_led:
        return 0
    room = int(max(_room(job, weights, device), 0) * PICTURE_SHARE)
    weights.tower.most_bytes = min(room, PICTURE_BYTES)
    return weights.tower.most_bytes


def count_states(
    job: Load, weights: Weights, recurrent: dict[int, Recurrence], device: torch.device
) -> tuple[int, int]:
    """Return how many sequences run at once, and how many snapshots of states there are."""
    if not recurrent:
        return job.max_sequences, 0
    room = _room(job, weights, device) * STATE_SHARE
    fit = int(room / slot_bytes(recurrent, weights.module.dtype))
    fit = fit if job.speculation == "off" else fit // 2  # a draft that fails needs the one before
    rows = max(1, min(job.max_sequences, fit))
    return rows, max(1, min(SNAPSHOTS * rows, fit))


def count_blocks(
    job: Load,
    weights: Weights,
    heads: dict[int, Heads],
    device: torch.device,
    *,
    rows: int,
    taken: int,
) -> int:
    """
    Return how many blocks the cache gets: enough for all sequences, or what there is room for.

    Args:
        job: What is loaded.
        weights: Of it.
        heads: What a layer keeps of a token, by layer.
        device: Where.
        rows: Sequences that run at once.
        taken: Bytes of the cache that are for states.

    Raises:
        InsufficientVram: The room is too small for one sequence of any use.
    """
    token_bytes = sum(h.elements for h in heads.values()) * weights.module.dtype.itemsize
    block_bytes = token_bytes * BLOCK_TOKENS
    per_sequence = blocks_for(weights.context)
    free = free_bytes(device)
    room = _room(job, weights, device)
    least = min(weights.context, LEAST_TOKENS) * token_bytes + block_bytes + taken
    room = max(room, min(least, int(free * job.cache_fraction)))
    if room < least:
        raise InsufficientVram(
            f"{job.model}: {room >> 20} MiB are left for its cache, {-(-least >> 20)} are needed",
            details={"needed_mb": -(-(weights.used_bytes + least) >> 20), "free_mb": free >> 20},
        )
    return int(min(1 + per_sequence * rows, (room - taken) // max(block_bytes, 1)))


def _room(job: Load, weights: Weights, device: torch.device) -> int:
    """Return the bytes its cache may take."""
    if job.memory_bytes is not None:
        return int(job.memory_bytes * (1 - HEADROOM)) - weights.used_bytes
    room = int(free_bytes(device) * job.cache_fraction)
    return min(room, CPU_CACHE_BYTES) if device.type == "cpu" else room


def free_bytes(device: torch.device) -> int:
    """Return the memory of a device that nobody uses."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(device)[0])
    lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    found: dict[str, Any] = dict(line.split(":", 1) for line in lines)
    return int(found["MemAvailable"].split()[0]) << 10
