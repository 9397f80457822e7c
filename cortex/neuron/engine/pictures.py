"""Pictures in prompts: what the neuron has to know of a model's sight, and what it hands over."""

from __future__ import annotations

import msgspec


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """
    How a model sees: pictures are resized to multiples of *patch* x *merge* pixels a side.

    Attributes:
        token: Its placeholder: once for each picture in what the chat template gives, and as often
            as the picture has tokens in the prompt.
        patch: Pixels of a patch's side.
        merge: Patches of a token's side.
        least_pixels: Smaller pictures are enlarged to as many.
        most_pixels: Larger ones are reduced to as many.
    """

    token: int
    patch: int
    merge: int
    least_pixels: int
    most_pixels: int


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """
    One picture of a prompt, resized.

    Attributes:
        at: Where in the prompt its first placeholder is.
        height: In pixels.
        width: In pixels.
        rgb: Three bytes a pixel, row by row.
        digest: Of all the above but *at*: equal ones are one picture.
    """

    at: int
    height: int
    width: int
    rgb: bytes
    digest: bytes

    def tokens(self, sight: Sight) -> int:
        """Return how many tokens of the prompt it is."""
        high, wide = self.grid(sight)
        return high * wide

    def grid(self, sight: Sight) -> tuple[int, int]:
        """Return how many tokens high and wide it is."""
        side = sight.patch * sight.merge
        return self.height // side, self.width // side
