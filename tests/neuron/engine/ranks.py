"""Ranks of a group as threads of one process: what each is and does, without processes to start."""

from __future__ import annotations

import queue
import threading
from contextlib import contextmanager

import torch
import transformers

from cortex.neuron.engine import plan
from cortex.neuron.engine.kernels import kernels_for
from cortex.neuron.engine.leading import Follower, Leader
from cortex.neuron.engine.runner import Runner
from cortex.neuron.engine.shards import Shards
from cortex.neuron.engine.stack import Stack
from tests.neuron.engine.engines import DEVICE, batching_of, cache_of
from tests.neuron.engine.seeing import tower_of

MEET_S = 20


class Rank:
    """A `cortex.neuron.engine.group.Group` whose others are threads."""

    def __init__(self, rank, together):
        self.rank, self.ranks = rank, together.ranks
        self._together = together

    def meet(self, said):
        together = self._together
        together.said[self.rank] = said
        together.barrier.wait(MEET_S)
        every = list(together.said)
        together.barrier.wait(MEET_S)
        return every

    def sum(self, part):
        return torch.stack(self.meet(part.clone())).sum(0)

    def add(self, part, to, factor):
        to.add_(self.sum(part), alpha=factor)

    def gather(self, part):
        return torch.stack(self.meet(part.clone()))

    def spread(self, tensor):
        tensor.copy_(self.meet(tensor.clone())[0])

    def tell(self, body):
        for heard in self._together.heard[1:]:
            heard.put(body)


class Together:
    """What the ranks have in common."""

    def __init__(self, ranks):
        self.ranks = ranks
        self.barrier = threading.Barrier(ranks)
        self.said = [None] * ranks
        self.heard = [queue.SimpleQueue() for _ in range(ranks)]

    def run(self, work):
        """Return what *work* gives each rank, each on a thread of its own."""
        out, errors = [None] * self.ranks, []

        def one(rank):
            try:
                with torch.inference_mode():
                    out[rank] = work(Rank(rank, self))
            except BaseException as error:  # noqa: BLE001 - it is raised where it is looked for
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise next(e for e in errors if not isinstance(e, threading.BrokenBarrierError))
        return out


def sees(module):
    return hasattr(module.model, "visual")


def share_of(module, rank):
    """Return a rank's share of a model, and how it was cut."""
    shards = Shards(module.config, rank)
    weights, auto = shards.of(module.state_dict()), transformers.AutoModelForCausalLM
    if sees(module):
        auto = transformers.AutoModelForImageTextToText
    share, found = shards.model(weights, auto, dtype=module.dtype)
    assert not found["missing_keys"]
    share.eval().to(DEVICE)
    shards.join(share)
    return share, shards


def runner_of(module, rank, *, blocks, rows, snapshots):
    """Return what runs a rank's share, and its cache."""
    share, shards = share_of(module, rank)
    cache = cache_of(share, blocks, 1 + 2 * rows + snapshots)
    kind = Runner if rank.rank else Leader
    body = Stack(share, kernels_for(DEVICE), shards)
    tower = tower_of(share) if sees(share) else None
    told = {"rows": rows, "blocks": blocks, "device": DEVICE, "tokens": shards.tokens}
    return kind(*(body, cache), **told, tower=tower), cache, tower


@contextmanager
def split_engine(module, ranks, *, blocks=200, rows=16, snapshots=20, **limits):
    """Yield the engine of rank 0; the others are at work until it is left."""
    together = Together(ranks)
    made = together.run(
        lambda rank: runner_of(module, rank, blocks=blocks, rows=rows, snapshots=snapshots)
    )
    leader, cache, _ = made[0]
    leader.lead("m", Rank(0, together))
    followers = [
        Follower(runner, Rank(rank, together), tower)
        for rank, (runner, _, tower) in enumerate(made)
        if rank
    ]
    errors = []

    def follow(follower, heard):
        try:
            with torch.inference_mode():
                while (body := heard.get()) is not None:
                    follower.follow(plan.decode(body))
        except BaseException as error:  # noqa: BLE001 - it is raised where it is looked for
            errors.append(error)
            together.barrier.abort()

    threads = [
        threading.Thread(target=follow, args=pair)
        for pair in zip(followers, together.heard[1:], strict=True)
    ]
    for thread in threads:
        thread.start()
    try:
        yield batching_of(leader, cache, blocks, rows, snapshots, **limits)
    finally:
        for heard in together.heard[1:]:
            heard.put(None)
        for thread in threads:
            thread.join()
        assert not errors, errors
