"""Keeps one answer within a grammar: which tokens may come next."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import torch
from llguidance import LLMatcher, LLTokenizer

from cortex.errors import InvalidRequest


def tokenizer(text: str, vocabulary: int, end_tokens: AbstractSet[int]) -> LLTokenizer:
    """
    Return what grammars are followed with; once a model, it takes up to a second.

    Args:
        text: tokenizer.json.
        vocabulary: How many logits the model gives, which may be more than it has tokens.
        end_tokens: Ids that end an answer; empty asks the tokenizer.
    """
    return LLTokenizer(text, n_vocab=vocabulary, eos_token=sorted(end_tokens) or None)


class Grammar:
    """
    Follows one answer.  An end token may come where the answer could end.

    Raises:
        InvalidRequest: The grammar does not compile, or, later, nothing can follow it.
    """

    def __init__(self, source: str, tokens: LLTokenizer) -> None:
        self._matcher = LLMatcher(tokens, source, log_level=0)
        self._check()

    def allowed(self) -> torch.Tensor:
        """Return which tokens may come next: [vocab] bool, cpu.."""
        every = bytearray(self._matcher.compute_logit_bias())
        self._check()
        return torch.frombuffer(every, dtype=torch.uint8).bool()

    def accept(self, token: int) -> bool:
        """Take the next token, no end token; return whether the answer is complete with it."""
        self._matcher.consume_token(token)
        self._check()
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            said, *_ = self._matcher.get_error().splitlines()  # then comes the state it is in
            raise InvalidRequest(f"the answer's form cannot be kept to: {said}")
