"""One forward pass over the next tokens of several sequences, flattened into one row of tokens."""

from __future__ import annotations

import attrs
import torch


@attrs.frozen(kw_only=True, eq=False)
class Step:
    """
    What a forward pass needs besides weights; tensors are on the device.

    Sequences that decode, with one new token each, come first: *decodes* of them.

    Attributes:
        ids: Token ids.  # [tokens] int64
        positions: Of each in its sequence.  # [tokens] int64
        slots: Where in the cache its key goes: block x `BLOCK_TOKENS` + place.  # [tokens] int64
        lengths: Keys of each sequence, the new ones included.  # [sequences] int32
        table: Blocks of each sequence; what is beyond its length is anything.
            # [sequences, blocks] int32
        wanted: Tokens whose logits are wanted.  # [wanted] int64
        counts: New tokens of each sequence, known to the host; *ends* its `lengths`.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    lengths: torch.Tensor
    table: torch.Tensor
    wanted: torch.Tensor
    decodes: int
    counts: tuple[int, ...]
    ends: tuple[int, ...]
