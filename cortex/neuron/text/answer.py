"""One answer of a model, from tokens to events."""

from __future__ import annotations

import attrs

from cortex.chat.events import (
    ChatEvent,
    FinishReason,
    TextDelta,
    ThinkingDelta,
    TokenLogprob,
    ToolCallDelta,
    ToolCallStarted,
)
from cortex.neuron.engine.jobs import Token
from cortex.neuron.text.begun import Begun
from cortex.neuron.text.parser import Parser
from cortex.neuron.text.tokens import Detokenizer, Vocabulary


class Answer:
    """
    Reads the tokens of one answer.

    Attributes:
        tokens: How many came; `reasoning_tokens` of them were thought, marks included.
    """

    def __init__(
        self,
        parser: Parser,
        detokenizer: Detokenizer,
        vocabulary: Vocabulary | None,
        begun: Begun | None = None,
    ) -> None:
        """
        Args:
            parser: Of the answer.
            detokenizer: Makes text of its tokens.
            vocabulary: Log probabilities are reported if there is one to put them in words.
            begun: What was said before and does not come again, but for calls that begin in it.
        """  # noqa: D205 - __init__ has no summary of its own
        self.tokens = 0
        self.reasoning_tokens = 0
        self._parser = parser
        self._detokenizer = detokenizer
        self._vocabulary = vocabulary
        self._logprobs: list[TokenLogprob] = []  # since the last text
        self._calling = False  # since then there was a call, whose tokens are nobody's
        self._before: list[ChatEvent] = []  # calls that begin in what was begun
        self._known = ""  # its end, which the parser still holds back
        if begun is not None:
            self._begin(begun)

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
        events = self._new(self._parser.feed(self._detokenizer.feed(token.id)))
        self.tokens += 1
        if thinking or self._parser.thinking:
            self.reasoning_tokens += 1
        elif self._vocabulary is not None:
            before = [] if self._calling else self._logprobs
            self._logprobs = [*before, self._vocabulary.logprob(token)]
        return self._with_logprobs(events)

    def finish(self, *, cut: bool = False) -> list[ChatEvent]:
        """Return what was held back; see `Parser.finish`."""
        events = self._with_logprobs(self._new(self._parser.finish(cut=cut)))
        if self._logprobs and not self._calling:
            events.append(TextDelta("", tuple(self._logprobs)))
        return events

    def reason(self, *, cut: bool = False) -> FinishReason:
        """Return why the answer ended; see `Parser.finish`."""
        return self._parser.reason(cut=cut)

    def _begin(self, begun: Begun) -> None:
        events = self._parser.begin(begun.written)
        self._before = [e for e in events if isinstance(e, ToolCallStarted | ToolCallDelta)]
        if self._before:
            return
        kind, said = (TextDelta, begun.text) if begun.text else (ThinkingDelta, begun.thought)
        shown = "".join(event.text for event in events if isinstance(event, kind))
        self._known = said[said.find(shown) + len(shown) :]

    def _new(self, events: list[ChatEvent]) -> list[ChatEvent]:
        """Return *events* without what was said before."""
        events, self._before = [*self._before, *events], []
        return [event for event in map(self._rest, events) if event is not None]

    def _rest(self, event: ChatEvent) -> ChatEvent | None:
        """Return what is new of an event."""
        if not self._known:
            return event
        known, self._known = self._known, ""
        if isinstance(event, TextDelta | ThinkingDelta):
            both = min(len(known), len(event.text))
            if event.text[:both] == known[:both]:
                self._known = known[both:]
                return attrs.evolve(event, text=event.text[both:]) if event.text[both:] else None
        return event

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
