"""What a model's layers are made of, as fused as the device allows; all take a flattened batch."""

from __future__ import annotations

from typing import Protocol

import torch

from cortex.neuron.engine.cache import Pages
from cortex.neuron.engine.layers import Delta, Linear, Norm
from cortex.neuron.engine.rows import Rows
from cortex.neuron.engine.states import State
from cortex.neuron.engine.step import Step


class Kernels(Protocol):
    """
    The operations of a decoder's forward pass.

    `reference` has them in plain torch and says by that what each computes; `fused` has them in
    Triton.
    """

    def advance(self, rows: Rows, which: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Take *which* rows a token further; row 0, which is padding's, stays where it is.

        Returns:
            The token each picked last, its position, where in the cache its key goes, and how many
            keys there are with it.  # [rows] int64 each
        """

    def linear(self, x: torch.Tensor, layer: Linear, before: Norm | None = None) -> torch.Tensor:
        """Return what *layer* makes of *x*, normed *before*: [tokens, out]."""

    def norm(self, x: torch.Tensor, of: Norm) -> torch.Tensor:
        """Return *x* normed: [tokens, width]."""

    def gated(self, x: torch.Tensor, layer: Linear, before: Norm) -> torch.Tensor:
        """Return silu(gate) * up of *x* normed, *layer* being both: [tokens, out / 2]."""

    def add(
        self, x: torch.Tensor, layer: Linear, residual: torch.Tensor, factor: float = 1.0
    ) -> None:
        """Add *factor* times what *layer* makes of *x* to *residual*, in place."""

    def rotate(
        self, projected: torch.Tensor, turns: torch.Tensor, norms: tuple[Norm, Norm] | None,
        pages: Pages, step: Step,
    ) -> torch.Tensor:  # fmt: skip
        """
        Norm and turn queries and keys, and write keys and values to the cache.

        Args:
            projected: Queries, keys and values, one behind the other; behind the query of each
                head there may be as much of something else.  # [tokens, out]
            turns: By how much; see `Rotary.turns`.
            norms: Of queries and of keys, head by head.
            pages: Of the layer.
            step: Whose tokens they are.

        Returns:
            The queries.  # [tokens, heads, width]
        """

    def attend(self, queries: torch.Tensor, pages: Pages, step: Step) -> torch.Tensor:
        """
        Attend to what is in the cache; the step's own keys are there already.

        Args:
            queries: # [tokens, heads, width]
            pages: Of the layer.
            step: Whose tokens they are.

        Returns:
            # [tokens, heads, value_width]
        """

    def delta(
        self, projected: torch.Tensor, layer: Delta, state: State, step: Step
    ) -> torch.Tensor:
        """
        Take tokens into the states of their sequences, and answer from those.

        Args:
            projected: What *layer* made of them at first.  # [tokens, out]
            layer: Of linear attention.
            state: Of the layer.
            step: Whose tokens they are.

        Returns:
            # [tokens, value_heads x value]
        """

    def pick(
        self, logits: torch.Tensor, rows: Rows, which: torch.Tensor, ends: torch.Tensor
    ) -> torch.Tensor:
        """
        Draw a token for each of *which* rows: [rows] int64.

        Args:
            logits: # [rows, vocabulary]
            rows: How theirs are to be drawn.
            which: Rows of device state.
            ends: Tokens before each that is drawn, in its sequence.  # [rows] int64
        """

    def best(
        self, logits: torch.Tensor, rows: Rows, which: torch.Tensor, ends: torch.Tensor, first: int
    ) -> torch.Tensor:
        """
        Do as `pick` over some of the vocabulary, for rows without top-k, top-p and min-p.

        Args:
            logits: Of tokens from *first* on.  # [rows, tokens]
            rows: How theirs are to be drawn.
            which: Rows of device state.
            ends: Tokens before each that is drawn, in its sequence.  # [rows] int64
            first: Id of the first token.

        Returns:
            How good each row's best token is, and which it is.  # [rows, 2] float64
        """


def kernels_for(device: torch.device) -> Kernels:
    """Return the fastest there are for a device."""
    if device.type == "cuda":
        from cortex.neuron.engine.kernels import fused

        return fused
    from cortex.neuron.engine.kernels import reference

    return reference
