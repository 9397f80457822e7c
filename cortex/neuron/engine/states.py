"""
What layers of linear attention keep of sequences, instead of keys and values: a state each.

A sequence's state is in the slot of its row.  Slots above those of rows hold copies, from which
sequences that begin alike go on.  Slot 0 is padding's and nobody's: it stays zero, and is what a
new sequence begins with.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import torch


@attrs.frozen(kw_only=True)
class Recurrence:
    """
    The shape of a layer of linear attention.

    Attributes:
        key_heads: Heads of queries and of keys.
        value_heads: Heads of values, as many for each of the keys.
        key: Width of a key.
        value: Width of a value.
        taps: Tokens its convolution sees, the latest included.
    """

    key_heads: int
    value_heads: int
    key: int
    value: int
    taps: int

    @property
    def channels(self) -> int:
        """Of the convolution: queries, keys and values of a token."""
        return 2 * self.key_heads * self.key + self.value_heads * self.value


@attrs.frozen(kw_only=True, eq=False)
class State:
    """
    The states of one layer.

    Attributes:
        inputs: The latest inputs of the convolution.  # [slots, taps - 1, channels]
        memory: What was written under keys.  # [slots, value_heads, key, value] float32
    """

    inputs: torch.Tensor
    memory: torch.Tensor


class States:
    """
    Those of all *layers*.

    Attributes:
        layers: By number.

    Raises:
        TypeError: The layers differ in shape.
    """

    def __init__(
        self, layers: dict[int, Recurrence], slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shapes = set(layers.values())
        if len(shapes) > 1:
            raise TypeError("its layers of linear attention differ in shape")
        self._all: tuple[torch.Tensor, ...] = ()
        self.layers: dict[int, State] = {}
        for shape in shapes:
            rooms = (
                ((shape.taps - 1, shape.channels), dtype),
                ((shape.value_heads, shape.key, shape.value), torch.float32),
            )
            self._all = tuple(
                torch.zeros(len(layers), slots, *room, dtype=kind, device=device)
                for room, kind in rooms
            )
            self.layers = {
                layer: State(inputs=inputs, memory=memory)
                for layer, inputs, memory in zip(layers, *self._all, strict=True)
            }

    @property
    def used_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._all)

    def copy(self, slots: Iterable[tuple[int, int]]) -> None:
        """Copy from one slot to another, in this order."""
        for source, to in slots:
            for tensor in self._all:
                tensor[:, to] = tensor[:, source]


def slot_bytes(layers: dict[int, Recurrence], dtype: torch.dtype) -> int:
    """Return how many bytes a slot takes."""
    return sum(
        (shape.taps - 1) * shape.channels * dtype.itemsize
        + shape.value_heads * shape.key * shape.value * torch.float32.itemsize
        for shape in layers.values()
    )
