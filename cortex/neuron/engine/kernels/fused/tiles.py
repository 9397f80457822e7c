"""
How a linear layer is cut into programs: rows and columns of its weight, and warps.

For one token it was measured, in steps of Qwen3 of several sizes, whole and halved, on an H200
(benchmarks/results/tiles.txt); a shape that was not takes the tile of the one that is nearest.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

WIDE = 8192  # rows of a gate

Shape = tuple[int, int]


class Tile(NamedTuple):
    """Rows and columns of the weight a program takes at a time, its warps, and stages of loads."""

    rows: int
    columns: int
    warps: int
    stages: int = 1


GATED: dict[Shape, Tile] = {
    (3072, 1024): Tile(2, 1024, 4),
    (6144, 2048): Tile(16, 256, 8),
    (6144, 4096): Tile(16, 256, 8),
    (9728, 2560): Tile(4, 256, 2),
    (12288, 4096): Tile(16, 256, 8),
    (12800, 5120): Tile(4, 512, 4),
    (17408, 5120): Tile(16, 256, 8),
}
NORMED: dict[Shape, Tile] = {
    (3072, 4096): Tile(2, 2048, 4),
    (4096, 1024): Tile(2, 1024, 4),
    (4096, 2048): Tile(2, 2048, 4),
    (5120, 5120): Tile(16, 512, 4),
    (6144, 2560): Tile(16, 512, 4),
    (6144, 4096): Tile(4, 2048, 8),
    (7168, 5120): Tile(8, 512, 4),
    (12288, 4096): Tile(4, 2048, 8),
    (75968, 4096): Tile(4, 2048, 8),
    (151936, 1024): Tile(16, 256, 2),
    (151936, 2560): Tile(8, 512, 2),
    (151936, 4096): Tile(4, 2048, 8),
}
PLAIN: dict[Shape, Tile] = {
    (1024, 2048): Tile(2, 2048, 4),
    (1024, 3072): Tile(2, 2048, 4),
    (2048, 2048): Tile(4, 2048, 8),
    (2048, 6144): Tile(4, 1024, 8),
    (2560, 4096): Tile(4, 2048, 4),
    (2560, 9728): Tile(8, 1024, 8),
    (4096, 2048): Tile(4, 2048, 8),
    (4096, 4096): Tile(4, 2048, 8),
    (4096, 6144): Tile(16, 512, 8),
    (4096, 12288): Tile(8, 512, 8),
    (5120, 4096): Tile(4, 2048, 4),
    (5120, 5120): Tile(16, 512, 8),
    (5120, 12800): Tile(8, 512, 8),
    (5120, 17408): Tile(8, 512, 8),
}
QUANTISED_GATED: dict[Shape, Tile] = {
    (3072, 1024): Tile(16, 512, 8),
    (6144, 4096): Tile(16, 256, 8),
    (9728, 2560): Tile(4, 512, 4),
    (12288, 4096): Tile(16, 256, 8),
}
QUANTISED_NORMED: dict[Shape, Tile] = {
    (3072, 4096): Tile(8, 512, 8),
    (4096, 1024): Tile(4, 2048, 8),
    (6144, 2560): Tile(4, 512, 4),
    (6144, 4096): Tile(8, 512, 4),
}
QUANTISED_PLAIN: dict[Shape, Tile] = {
    (1024, 2048): Tile(2, 2048, 4),
    (1024, 3072): Tile(4, 1024, 4),
    (2560, 4096): Tile(4, 1024, 4),
    (2560, 9728): Tile(4, 1024, 4),
    (4096, 2048): Tile(4, 2048, 8),
    (4096, 4096): Tile(4, 2048, 8),
    (4096, 6144): Tile(8, 1024, 8),
    (4096, 12288): Tile(8, 1024, 8),
}
SEVERAL, SEVERAL_GATED = Tile(32, 256, 4, 3), Tile(64, 64, 4, 4)  # tokens


@cache
def tile(
    tokens: int, out: int, width: int, *, has_norm: bool, is_gated: bool, is_quantised: bool
) -> Tile:
    """
    Return the tile for so many tokens.

    Args:
        tokens: That are multiplied.
        out: Rows of the weight; of one that is gated, half of them.
        width: Its columns.
        has_norm: Whether tokens are normed before.
        is_gated: Whether the weight is of a gate and of what it is for.
        is_quantised: Whether it has eight bits.
    """
    if tokens > 1:
        is_wide = is_gated and out >= WIDE and not is_quantised
        return SEVERAL_GATED if is_wide else SEVERAL
    if is_gated:
        measured = QUANTISED_GATED if is_quantised else GATED
    elif has_norm:
        measured = QUANTISED_NORMED if is_quantised else NORMED
    else:
        measured = QUANTISED_PLAIN if is_quantised else PLAIN
    return measured[min(measured, key=lambda shape: apart(shape, (out, width)))]


def apart(shape: Shape, other: Shape) -> float:
    """Return how far two shapes are from each other."""
    return sum(abs(math.log(a / b)) for a, b in zip(shape, other, strict=True))
