"""One answer of a model, from tokens to events."""

from __future__ import annotations

from cortex.chat.events import (
    ChatEvent,
    FinishReason,
    TextDelta,
    TokenLogprob,
    ToolCallStarted,
)
from cortex.neuron.engine.jobs import Token
from cortex.neuron.text.parser import Parser
from cortex.neuron.text.tokens import Detokenizer, Vocabulary


class Answer:
    """
    Reads the tokens of one answer.

    Attributes:
        tokens: How many came; `reasoning_tokens` of them were thought, marks included.
    """

    def __init__(
        self, parser: Parser, detokenizer: Detokenizer, vocabulary: Vocabulary | None
    ) -> None:
        """Log probabilities are reported if there is a *vocabulary* to put them in words."""
        self.tokens = 0
        self.reasoning_tokens = 0
        self._parser = parser
        self._detokenizer = detokenizer
        self._vocabulary = vocabulary
        self._logprobs: list[TokenLogprob] = []  # since the last text
        self._calling = False  # since then there was a call, whose tokens are nobody's

    @property
    def over(self) -> bool:
        """Whether nothing that comes counts any more."""
        return self._parser.over

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the answer."""
        return self._parser.stop_string

    def feed(self, token: Token) -> list[ChatEvent]:
        """Return what is certain now."""
        thinking = self._parser.thinking
        events = self._parser.feed(self._detokenizer.feed(token.id))
        self.tokens += 1
        if thinking or self._parser.thinking:
            self.reasoning_tokens += 1
        elif self._vocabulary is not None:
            before = [] if self._calling else self._logprobs
            self._logprobs = [*before, self._vocabulary.logprob(token)]
        return self._with_logprobs(events)

    def finish(self, *, cut: bool = False) -> list[ChatEvent]:
        """Return what was held back; see `Parser.finish`."""
        events = self._with_logprobs(self._parser.finish(cut=cut))
        if self._logprobs and not self._calling:
            events.append(TextDelta("", tuple(self._logprobs)))
        return events

    def reason(self, *, cut: bool = False) -> FinishReason:
        """Return why the answer ended; see `Parser.finish`."""
        return self._parser.reason(cut=cut)

    def _with_logprobs(self, events: list[ChatEvent]) -> list[ChatEvent]:
        """Give each text its tokens."""
        for number, event in enumerate(events):
            match event:
                case TextDelta(text) if self._logprobs:
                    events[number] = TextDelta(text, tuple(self._logprobs))
                    self._logprobs, self._calling = [], False
                case ToolCallStarted():
                    self._logprobs, self._calling = [], True
        return events
