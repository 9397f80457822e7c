"""Where a device worker stands among those that run a model together."""

from __future__ import annotations

import msgspec


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """
    A worker's place in a group, of which each has a share of a model.

    Attributes:
        folder: Where the ranks find each other; the neuron's, and of this group alone.
    """

    rank: int
    ranks: int
    folder: str
