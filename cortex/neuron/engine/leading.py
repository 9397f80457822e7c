"""Steps of a model that several ranks run: rank 0 tells what it does, its peers do the same."""

from __future__ import annotations

from typing import Any

import msgspec
import torch

from cortex.neuron.engine import plan
from cortex.neuron.engine.batch import Shape
from cortex.neuron.engine.group import Group
from cortex.neuron.engine.jobs import Embed, End, Figures, Generate, Token
from cortex.neuron.engine.launched import Launched
from cortex.neuron.engine.poison import GroupBroken
from cortex.neuron.engine.runner import Drawn, Runner
from cortex.neuron.engine.scheduler import Chunk
from cortex.neuron.engine.sequence import Sequence
from cortex.neuron.engine.step import Shown
from cortex.neuron.engine.tower import Tower


class Leader(Runner):
    """The runner of rank 0: its peers hear of each step before it is queued here."""

    def lead(self, model: str, group: Group) -> None:
        """Begin to tell the *group* of *model*."""
        self._model = model
        self._peers = group
        self._number = 0
        self._changes: list[plan.Change] = []

    def change(
        self,
        moved: dict[tuple[int, int], int],
        entered: dict[int, Sequence],
        copies: list[tuple[int, int]],
    ) -> None:
        if (change := plan.Change.of(moved, entered, copies)) is not None:
            self._changes.append(change)
        super().change(moved, entered, copies)

    def launch(self, chunks: list[Chunk]) -> Launched:
        """
        Queue a step, here and everywhere.

        Raises:
            GroupBroken: It went wrong here, and who knows how far the peers are.
        """
        try:
            return super().launch(chunks)
        except Exception as error:
            raise GroupBroken(f"{type(error).__name__}: {error}") from error

    def run(
        self, layout: plan.Layout, samplers: list[Sequence], shown: dict[str, Any] | None = None
    ) -> Drawn:
        layout = msgspec.structs.replace(
            layout,
            is_whole=any(map(needs_whole, samplers)),
            is_chosen=any(sequence.is_adjusted for sequence in samplers),
            shown=None if shown is None else shape_of(shown["shown"]),
        )
        changes, self._changes = self._changes, []
        told = plan.Plan(model=self._model, number=self._number, changes=changes, layout=layout)
        self._number += 1
        self._peers.tell(plan.encode(told))
        if shown is not None:
            spread(self._peers, shown)
        return super().run(layout, samplers, shown)

    def chosen(self, picked: torch.Tensor) -> torch.Tensor:
        self._peers.spread(picked)
        return picked


def needs_whole(sequence: Sequence) -> bool:
    """Tell whether its token cannot be told by the best of each rank's."""
    job = sequence.job
    cuts = job.top_k > 0 or job.top_p < 1 or job.min_p > 0
    return cuts or sequence.is_adjusted or job.logprobs is not None


def shape_of(shown: Shown | None) -> tuple[int, ...]:
    """Return what peers have to know to take in what stands for pictures."""
    return () if shown is None else tuple(shown.features.shape)


def spread(group: Group, told: dict[str, Any]) -> None:
    """Have all ranks know what rank 0 does of the pictures of a step; see `Tower.blank`."""
    shown: Shown | None = told["shown"]
    group.spread(told["places"])
    if shown is not None:
        group.spread(shown.at)
        group.spread(shown.features)


class Follower:
    """The engine of any other rank: it has no requests, and does as rank 0 says."""

    has_work = False

    def __init__(self, runner: Runner, group: Group, tower: Tower | None = None) -> None:
        self._runner = runner
        self._group = group
        self._tower = tower
        self._number = 0

    @property
    def requests(self) -> list[str]:
        """None: they are rank 0's."""
        return []

    def follow(self, told: plan.Plan) -> None:
        """
        Queue a step.

        Raises:
            GroupBroken: It is not the next one.
        """
        if told.number != self._number:
            raise GroupBroken(f"step {told.number} came where {self._number} was next")
        self._number += 1
        runner, layout = self._runner, told.layout
        for change in told.changes:
            runner.change(
                {(row, place): block for row, place, block in change.moved},
                {entry.row: entry.sequence() for entry in change.entered},
                change.copies,
            )
        shown = None
        if layout.shown is not None:
            assert self._tower is not None  # noqa: S101 - or rank 0 had none either
            tokens = Shape.told(layout.shape).fields[0]
            shown = self._tower.blank(tokens, layout.shown)
            spread(self._group, shown)
        drawn = runner.run(layout, [], shown)
        if layout.is_chosen:
            picked = torch.empty_like(drawn.which)
            self._group.spread(picked)
            runner.rows.last[drawn.which] = picked

    def add(self, job: Generate | Embed, grammar: object = None) -> None:  # noqa: ARG002
        raise AssertionError("requests are rank 0's")

    def cancel(self, request: str) -> End | None:  # noqa: ARG002
        return None

    def step(self) -> tuple[list[Token], list[End]]:
        return [], []

    def figures(self, model: str, tok_s: float) -> Figures:
        """Return what it does by itself: nothing."""
        return Figures(model=model, running=0, tok_s=tok_s)
