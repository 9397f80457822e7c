"""
A model's vision tower: pictures to what stands in a prompt for their tokens' embeddings.

The tower is transformers', as it is.  It looks at a picture once; what it saw is kept, in a bounded
number of bytes, and the least recently used goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch

from cortex.neuron.engine.pictures import Picture, Sight
from cortex.neuron.engine.places import AXES, Places, plain
from cortex.neuron.engine.sight import Shades
from cortex.neuron.engine.step import Shown

Piece = tuple[Places | None, int, int]  # tokens from here to there of a sequence with these places


class Tower:
    """
    That of *module*, a model for text and pictures.

    Attributes:
        sight: How it sees.
        most_bytes: Of what is kept, the latest alone apart.
    """

    def __init__(self, module: Any, sight: Sight, shades: Shades, most_bytes: int = 0) -> None:
        self.sight = sight
        self.most_bytes = most_bytes
        self._module = module
        self._frames = module.config.vision_config.temporal_patch_size
        device = module.device
        self._mean = torch.tensor(shades.mean, device=device)[:, None, None] / shades.factor
        self._std = torch.tensor(shades.std, device=device)[:, None, None] / shades.factor
        self._kept: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self._kept_bytes = 0

    def features(self, picture: Picture) -> torch.Tensor:
        """
        Return what stands for a picture.

        Returns:
            What its tokens' embeddings are, and what is added to their states after each of the
            first layers, in models that do so.  # [1 + layers, tokens, width]
        """
        if (found := self._kept.get(picture.digest)) is None:
            found = self._kept[picture.digest] = self._look(picture)
            self._kept_bytes += found.nbytes
        self._kept.move_to_end(picture.digest)
        while self._kept_bytes > self.most_bytes and len(self._kept) > 1:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return found

    def patches(self, picture: Picture) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Return a picture as transformers' towers want it.

        Returns:
            Its patches, those of one token next to each other, each as often as a moment of a video
            has frames; and how many there are of time, height and width.
            # [patches, 3 x frames x patch x patch] float32, [1, 3] int64
        """
        patch, merge = self.sight.patch, self.sight.merge
        high, wide = picture.grid(self.sight)
        flat = torch.frombuffer(bytearray(picture.rgb), dtype=torch.uint8).to(self._mean.device)
        rgb = flat.view(picture.height, picture.width, 3).permute(2, 0, 1).float()
        cut = ((rgb - self._mean) / self._std).view(3, high, merge, patch, wide, merge, patch)
        cut = cut.permute(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
        whole = cut.expand(-1, -1, -1, -1, -1, self._frames, -1, -1)
        grid = torch.tensor([[1, high * merge, wide * merge]], device=flat.device)
        return whole.reshape(high * wide * merge * merge, -1), grid

    def show(self, pieces: Sequence[Piece]) -> tuple[torch.Tensor, Shown | None]:
        """
        Return what a step needs to know of pictures in it.

        Args:
            pieces: Of sequences, in the order of the batch.

        Returns:
            Where its tokens are, and which are of pictures.  # [3, tokens] int64
        """
        device, begin = self._mean.device, 0
        where: list[torch.Tensor] = []
        places: list[int] = []
        seen: list[torch.Tensor] = []
        for of, start, end in pieces:
            where.append(plain(start, end) if of is None else of.between(start, end))
            for first, last, picture in [] if of is None else of.inside(start, end):
                seen.append(self.features(picture)[:, first - picture.at : last - picture.at])
                places += range(begin + first - start, begin + last - start)
            begin += end - start
        told = torch.cat(where, 1).to(device, non_blocking=True)
        if not seen:
            return told, None
        return told, Shown(at=torch.tensor(places).to(device), features=torch.cat(seen, 1))

    def blank(self, tokens: int, shape: Sequence[int]) -> dict[str, Any]:
        """
        Return what a step is to know of pictures another rank looks at, with room for it.

        Args:
            tokens: Of the step.
            shape: Of what stands for those of pictures; empty if there are none.
        """
        device, shown = self._mean.device, None
        if shape:
            at = torch.empty(shape[1], dtype=torch.int64, device=device)
            features = torch.empty(*shape, dtype=self._module.dtype, device=device)
            shown = Shown(at=at, features=features)
        places = torch.empty(AXES, tokens, dtype=torch.int64, device=device)
        return {"places": places, "shown": shown}

    def _look(self, picture: Picture) -> torch.Tensor:
        patches, grid = self.patches(picture)
        out = self._module.model.get_image_features(patches, grid, return_dict=True)
        deep = getattr(out, "deepstack_features", None) or ()
        whole = [_joined(parts) for parts in (out.pooler_output, *deep)]
        return torch.stack(whole).to(self._module.dtype)


def _joined(parts: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """Return what a tower gave: of all pictures, or of each, as transformers pleases."""
    return parts if isinstance(parts, torch.Tensor) else torch.cat(tuple(parts))
