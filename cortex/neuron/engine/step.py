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
        wanted: Tokens whose logits are wanted; None is all.  # [wanted] int64
        counts: New tokens of each sequence, known to the host.
        ends: `lengths`, where the host knows them: not where a GPU decodes.
        tiles: Of `tiles_of`, of *tile_tokens* each.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    lengths: torch.Tensor
    table: torch.Tensor
    wanted: torch.Tensor | None
    decodes: int
    counts: tuple[int, ...]
    ends: tuple[int, ...] = ()
    tiles: torch.Tensor | None = None
    tile_tokens: int = 1


def tiles_of(
    counts: tuple[int, ...], ends: tuple[int, ...], tokens: int, device: torch.device
) -> torch.Tensor | None:
    """
    Cut what does not decode into tiles of as many *tokens*, each of which attends by itself.

    Returns:
        Of each its sequence, its first token in the batch, how many it has, and how many keys the
        last of them sees; None if all decode.  # [tiles, 4] int32
    """
    tiles = []
    start = 0
    for number, (count, end) in enumerate(zip(counts, ends, strict=True)):
        for first in range(0, count if count > 1 else 0, tokens):
            size = min(tokens, count - first)
            tiles.append((number, start + first, size, end - count + first + size))
        start += count
    if not tiles:
        return None
    return torch.tensor(tiles, dtype=torch.int32).to(device, non_blocking=True)
