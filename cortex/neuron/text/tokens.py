"""Token ids and what they say."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

from cortex.chat.events import TokenLogprob
from cortex.errors import InvalidRequest
from cortex.neuron.engine.jobs import Token


class Vocabulary:
    """
    The tokenizer of a model.

    Attributes:
        size: Token ids there are; they begin at 0.
        special: The text of special tokens, by id.
        marks: The ids of those that llguidance takes for special, by text: to it, any added token
            in angle brackets is one.
    """

    def __init__(self, tokenizer: str) -> None:
        """Read a tokenizer.json."""
        from tokenizers import Tokenizer

        self._tokenizer: Any = Tokenizer.from_str(tokenizer)
        self.size = int(self._tokenizer.get_vocab_size())
        said = json.loads(tokenizer)
        self._byte_level = '"ByteLevel"' in json.dumps(said.get("decoder"))
        added = {token["id"]: token for token in said.get("added_tokens") or ()}
        self._added = {number: str(token["content"]) for number, token in added.items()}
        self.special = {n: self._added[n] for n, token in added.items() if token.get("special")}
        self.marks = {
            said: n
            for n, said in self._added.items()
            if n in self.special or (said.startswith("<") and said.endswith(">"))
        }

    def encode(self, text: str, *, special: bool) -> list[int]:
        """
        Return the ids of a text, with what the tokenizer puts around one if *special*.

        Raises:
            InvalidRequest: The tokenizer gives up on it, as many do on 12 MB of blanks.
        """
        # unlike that of one text it lets other threads run meanwhile, which may be for seconds
        try:
            (encoded,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=special)
        except BaseException as error:  # noqa: BLE001 - the library panics, which is no Exception
            raise InvalidRequest(f"the model's tokenizer cannot read the text: {error}") from None
        ids: list[int] = encoded.ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def detokenizer(self, marks: Iterable[str], before: Sequence[int] = ()) -> Detokenizer:
        """
        Return what makes text of one answer.

        Args:
            marks: Special tokens that are part of one are text.
            before: Tokens the answer goes on from, within a word maybe.
        """
        several = list(marks)
        kept = {
            n: said for n, said in self.special.items() if any(said in mark for mark in several)
        }
        return Detokenizer(self._tokenizer, kept, before)

    def logprob(self, token: Token) -> TokenLogprob:
        """Return how likely a token was, in words."""
        top = tuple(self._said(number, value) for number, value in token.top)
        return self._said(token.id, token.logprob or 0.0, top)

    def _said(self, number: int, value: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        data = self.data(number)
        text = data.decode(errors="replace")
        return TokenLogprob(token=text, logprob=value, data=data, top=top)

    def data(self, number: int) -> bytes:
        """Return the bytes of a token."""
        if number in self._added:
            return self._added[number].encode()
        piece = str(self._tokenizer.id_to_token(number) or "")
        if self._byte_level:
            return bytes(self._byte_of[char] for char in piece if char in self._byte_of)
        if len(piece) == len("<0x00>") and piece.startswith("<0x"):
            return bytes.fromhex(piece[3:5])
        return piece.replace("\u2581", " ").encode()

    @cached_property
    def _byte_of(self) -> dict[str, int]:
        """What byte a character stands for: printable ones for themselves, others from 256 on."""
        plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in plain]
        return {
            **{chr(byte): byte for byte in plain},
            **{chr(256 + number): byte for number, byte in enumerate(others)},
        }


class Detokenizer:
    """Makes text of one answer as it comes; half a character is held back until it is whole."""

    def __init__(self, tokenizer: Any, kept: dict[int, str], before: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._kept = kept
        self._stream = self._from(before)

    def _from(self, before: Sequence[int] = ()) -> Any:
        from tokenizers.decoders import DecodeStream

        return DecodeStream(ids=list(before), skip_special_tokens=True)

    def feed(self, token: int) -> str:
        """Return the text that is certain after *token*; often nothing."""
        if (mark := self._kept.get(token)) is not None:
            return mark
        try:
            return self._stream.step(self._tokenizer, token) or ""
        except Exception:  # noqa: BLE001 - the library's own: it gives up on bytes that are no text
            self._stream = self._from()
            return "\ufffd" + (self._stream.step(self._tokenizer, token) or "")
