"""
Where the tokens of a prompt with pictures are, on three axes: time, height and width.

Text goes on by one on all axes at once; the tokens of a picture share a time and differ in height
and width, and what follows comes after the larger of its sides.  So text behind pictures is at its
place in the sequence plus one number, which is that of the whole answer as well.
"""

from __future__ import annotations

import attrs
import torch

from cortex.neuron.engine.jobs import Generate
from cortex.neuron.engine.pictures import Picture, Sight

AXES = 3


@attrs.frozen(kw_only=True, eq=False)
class Places:
    """
    Those of one prompt.

    Attributes:
        index: On the host.  # [3, prompt] int64
        offset: Of what follows the last picture, to its place in the sequence.
        spans: The pictures in their order, each with its first token and the one after its last.
    """

    index: torch.Tensor
    offset: int
    spans: tuple[tuple[int, int, Picture], ...]

    @property
    def until(self) -> int:
        """How many tokens the prompt has up to the end of its last picture."""
        return self.spans[-1][1]

    def between(self, start: int, end: int) -> torch.Tensor:
        """Return where the tokens ``start .. end`` are, the answer's included: [3, tokens]."""
        known = self.index[:, start:end]
        missing = end - start - known.shape[1]
        if not missing:
            return known
        return torch.cat([known, plain(end - missing, end) + self.offset], 1)

    def inside(self, start: int, end: int) -> list[tuple[int, int, Picture]]:
        """Return which of the tokens ``start .. end`` are of which picture."""
        return [
            (max(first, start), min(last, end), picture)
            for first, last, picture in self.spans
            if first < end and start < last
        ]

    def mark(self, start: int, end: int) -> bytes:
        """Return what tells the tokens ``start .. end`` from the same ids with other pictures."""
        return b"".join(
            picture.at.to_bytes(8, "little") + picture.digest
            for _, _, picture in self.inside(start, end)
        )


def places_of(job: Generate, sight: Sight | None) -> Places | None:
    """Return where the tokens of a prompt are that is without `flaw`; None without pictures."""
    if sight is None or not job.pictures:
        return None
    parts: list[torch.Tensor] = []
    spans: list[tuple[int, int, Picture]] = []
    done = offset = 0
    for picture in job.pictures:
        parts.append(plain(done, picture.at) + offset)
        high, wide = picture.grid(sight)
        down, across = (
            torch.arange(high * wide).div(wide, rounding_mode="floor"),
            torch.arange(wide),
        )
        axes = (torch.zeros(high * wide, dtype=torch.int64), down, across.repeat(high))
        parts.append(torch.stack(axes) + picture.at + offset)
        done = picture.at + high * wide
        offset += max(high, wide) - high * wide
        spans.append((picture.at, done, picture))
    parts.append(plain(done, len(job.prompt)) + offset)
    return Places(index=torch.cat(parts, 1), offset=offset, spans=tuple(spans))


def plain(start: int, end: int) -> torch.Tensor:
    """Return where tokens are that no picture stands before: [3, tokens] int64."""
    return torch.arange(start, end).expand(AXES, -1)


def flaw(job: Generate, sight: Sight | None) -> str | None:
    """Return what is wrong with the pictures of a prompt, for a model that sees like that."""
    if not job.pictures:
        return None
    if sight is None:
        return "the model sees no pictures"
    side, done = sight.patch * sight.merge, 0
    for picture in job.pictures:
        count = picture.tokens(sight)
        if not count or picture.height % side or picture.width % side:
            return f"a picture of {picture.width}x{picture.height} is not of squares of {side}"
        if len(picture.rgb) != 3 * picture.height * picture.width:
            return f"a picture of {picture.width}x{picture.height} has {len(picture.rgb)} bytes"
        if (
            picture.at < done
            or job.prompt[picture.at : picture.at + count] != [sight.token] * count
        ):
            return f"there is no room for a picture of {count} tokens at {picture.at} of the prompt"
        done = picture.at + count
    return None
