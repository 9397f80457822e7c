"""A step of decodes of a runner, to be measured."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cortex.neuron.engine.plan import Layout
from cortex.neuron.engine.runner import Runner


def stepper(runner: Runner, batch: int, context: int) -> Callable[[], object]:
    """
    Return what runs a step of so many sequences, greedily; all ranks do, nobody is told.

    Args:
        runner: Of a model that nobody asks anything.
        batch: Sequences.
        context: Tokens each has, the one that is computed included.
    """
    rows, blocks = runner.rows, context // 16 + 1
    which = torch.arange(1, batch + 1, device=rows.lengths.device)
    there = len(next(iter(runner._cache.pages.values())).keys)  # noqa: SLF001
    found = torch.arange(1, batch * blocks + 1, device=which.device) % there
    rows.table[which, :blocks] = found.view(batch, blocks).int()
    rows.knobs.zero_()
    layout = Layout(rows=which.tolist())

    def step() -> None:
        rows.lengths[which] = context - 1
        Runner.run(runner, layout, [])

    return step
