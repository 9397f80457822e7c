"""One forward pass over the next tokens of several sequences, flattened into one row of tokens."""

from __future__ import annotations

import attrs
import torch


@attrs.frozen(kw_only=True, eq=False)
class Shown:
    """
    Tokens of a step that are of pictures.

    Attributes:
        at: Which they are, in order.  # [shown] int64
        features: What stands for their embeddings, and what is added to them after each of the
            first layers.  # [1 + layers, shown, width]
    """

    at: torch.Tensor
    features: torch.Tensor


@attrs.frozen(kw_only=True, eq=False)
class Step:
    """
    What a forward pass needs besides weights; tensors are on the device.

    Sequences that decode, with one new token each, come first: *decodes* of them.  One that tries
    a draft is there as often as it tries tokens, in their order, each as if it were alone.

    Attributes:
        ids: Token ids.  # [tokens] int64
        positions: Of each in its sequence.  # [tokens] int64
        slots: Where in the cache its key goes: block x `BLOCK_TOKENS` + place.  # [tokens] int64
        rows: Of each sequence, in *table*.  # [sequences] int64
        lengths: Keys of each sequence, the new ones included.  # [sequences] int64
        table: Blocks of each row; what is beyond its length is anything.  # [rows, blocks] int32
        lasts: The last token of each sequence, in the batch; None where all decode.
            # [sequences] int64
        wanted: Tokens whose logits are wanted; None is all.  # [wanted] int64
        tiles: Pieces of what does not decode, each of which attends by itself: its row, its first
            token in the batch, how many it has, and how many keys the last of them sees; none of
            more than *tile_tokens*.  # [tiles, 4] int64
        counts: New tokens of each sequence; *ends* its `lengths`.  Known where a CPU runs it.
        places: What tokens are turned by, if it is not their positions; on three axes, time, height
            and width, where there are pictures.  # [tokens] or [3, tokens] int64
        shown: Those of pictures.
        waves: From where to where in what decodes no sequence is there twice, in order.
        seen: What layers of a window look at, found by the first of them.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    rows: torch.Tensor
    lengths: torch.Tensor
    table: torch.Tensor
    decodes: int
    lasts: torch.Tensor | None = None
    wanted: torch.Tensor | None = None
    tiles: torch.Tensor | None = None
    tile_tokens: int = 1
    counts: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    places: torch.Tensor | None = None
    shown: Shown | None = None
    waves: tuple[tuple[int, int], ...] = attrs.field()
    seen: dict[int | None, tuple[torch.Tensor, torch.Tensor]] = attrs.field(
        factory=dict, init=False
    )

    @waves.default
    def _wave(self) -> tuple[tuple[int, int], ...]:
        return ((0, self.decodes),) if self.decodes else ()
