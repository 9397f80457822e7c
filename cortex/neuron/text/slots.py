"""Where pictures go in a prompt; what somebody wrote is never taken for such a place."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from cortex.errors import InvalidImage, InvalidRequest
from cortex.neuron.engine.pictures import Picture, Sight
from cortex.neuron.text.tokens import Vocabulary


class Slots:
    """
    The places of pictures in the prompts of a model that sees.

    Attributes:
        placeholder: What a chat template writes for one.
    """

    def __init__(self, vocabulary: Vocabulary, sight: Sight) -> None:
        self.placeholder = vocabulary.data(sight.token).decode()
        self._vocabulary = vocabulary
        self._sight = sight
        self._mark = f"x{secrets.token_hex(8)}x"  # nobody can have written it

    def guarded(self, value: Any) -> Any:
        """Return what goes into a template, with a mark inside any placeholder in its texts."""
        match value:
            case str():
                first, rest = self.placeholder[:1], self.placeholder[1:]
                return value.replace(self.placeholder, f"{first}{self._mark}{rest}")
            case Mapping():
                return {self.guarded(name): self.guarded(inner) for name, inner in value.items()}
            case list() | tuple():
                return [self.guarded(inner) for inner in value]
        return value

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text; a placeholder with a mark in it is no token of its own."""
        pieces = text.split(self._mark)
        return [n for piece in pieces for n in self._vocabulary.encode(piece, special=False)]

    def filled(
        self, ids: Sequence[int], pictures: Sequence[Picture]
    ) -> tuple[list[int], list[Picture]]:
        """
        Return a prompt with room for its pictures, and those where they are.

        Raises:
            InvalidImage: The template left one out.
        """
        token, found = self._sight.token, ids.count(self._sight.token)
        if found != len(pictures):
            raise InvalidImage(
                f"the model's chat template shows {found} of {len(pictures)} images",
                param="messages",
            )
        coming, prompt, placed = iter(pictures), list[int](), list[Picture]()
        for number in ids:
            if number != token:
                prompt.append(number)
                continue
            picture = msgspec.structs.replace(next(coming), at=len(prompt))
            placed.append(picture)
            prompt += [token] * picture.tokens(self._sight)
        return prompt, placed

    def refuse(self, prompt: str | Sequence[int]) -> None:
        """Raise for a bare prompt with a placeholder: there are no pictures to go with it."""
        token = self.placeholder if isinstance(prompt, str) else self._sight.token
        if token in prompt:
            raise InvalidRequest(
                f"prompt: {self.placeholder} stands for an image, and a bare prompt has none",
                param="prompt",
            )
