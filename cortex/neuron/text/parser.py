"""
What a model writes, as events: thoughts, text and tool calls.

`Parser` is fed text in pieces cut anywhere and says of each what is certain by then; the events do
not depend on where the cuts are, but for how their texts are divided.

White space beside a marker belongs to the marker.  Text that only looks like a call comes out as
text.  Stop strings are looked for in the answer's text and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from cortex.chat.events import (
    ChatEvent,
    FinishReason,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolCallStarted,
)
from cortex.chat.request import Tool
from cortex.neuron.text import harmony, json_text
from cortex.neuron.text.forms import Form, Unparsable
from cortex.neuron.text.reader import Pieces, Reading
from cortex.neuron.text.stops import Stops
from cortex.neuron.text.syntaxes import Calls, Syntax


class Parser:
    """
    Reads one answer.

    Attributes:
        thinking: What comes now is thought.
        over: Nothing that comes counts any more: a stop string, or the one call there may be.
    """

    def __init__(
        self,
        syntax: Syntax,
        *,
        stem: str,
        tools: Sequence[Tool] = (),
        parallel: bool = True,
        stop: Sequence[str] = (),
        thinking: bool = False,
    ) -> None:
        """
        Args:
            syntax: Of the model.
            stem: What ids of calls are derived from; another for each answer of a conversation.
            tools: Those the model was told of; without any, a call is text.
            parallel: The answer may have more than one call.
            stop: Strings that end the text.
            thinking: The prompt has opened the thoughts.
        """  # noqa: D205 - __init__ has no summary of its own
        self.thinking = thinking
        self.over = False
        self.complete = False
        self._syntax = syntax
        self._stem = stem
        self._tools = {tool.name: tool for tool in tools}
        self._parallel = parallel
        self._stops = Stops(stop)
        self._pieces = Pieces()
        self._events: list[ChatEvent] = []
        self._calls: list[str] = []
        self._bare = False
        self._blank = ""  # white space that is dropped if a marker follows
        self._fresh = False  # white space that comes now belongs to a marker
        self._thought = False
        self._reader = self._harmony() if syntax.harmony else self._marked()
        next(self._reader, None)

    def feed(self, text: str) -> list[ChatEvent]:
        """Return what is certain now that *text* has come too."""
        if not self.over:
            self._pieces.add(text)
            next(self._reader, None)
        events, self._events = self._events, []
        return events

    def begin(self, written: str) -> list[ChatEvent]:
        """Return what is certain of an answer that was begun; its end is not looked for in that."""
        stops, self._stops = self._stops, Stops(())
        events = self.feed(written)
        self._stops = stops
        return events

    def finish(self, *, cut: bool = False) -> list[ChatEvent]:
        """
        Return what was held back; nothing more will come.

        Args:
            cut: The model had more to say.
        """
        self.complete = not cut
        self._pieces.ended = True
        for _ in self._reader:
            pass
        self._flush()
        events, self._events = self._events, []
        return events

    def reason(self, *, cut: bool = False) -> FinishReason:
        """Return why the answer ended; see `finish`."""
        return "length" if cut else "tool_calls" if self._calls else "stop"

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the answer."""
        return self._stops.matched

    # What comes out.

    def _emit(self, event: TextDelta | ThinkingDelta | ToolCallStarted | ToolCallDelta) -> None:
        if self.over:
            return
        last = self._events[-1] if self._events else None
        match event, last:
            case (TextDelta(""), _) | (ThinkingDelta(""), _) | (ToolCallDelta(arguments=""), _):
                pass
            case TextDelta(more), TextDelta(text):
                self._events[-1] = TextDelta(text + more)
            case ThinkingDelta(more), ThinkingDelta(text):
                self._events[-1] = ThinkingDelta(text + more)
            case ToolCallDelta(index=index, arguments=more), ToolCallDelta(arguments=text):
                self._events[-1] = ToolCallDelta(index=index, arguments=text + more)
            case _:
                self._events.append(event)

    def _say(self, text: str) -> None:
        """Take text of the answer."""
        if self._fresh:
            text = text.lstrip()
            self._fresh = not text
        if text:
            self._utter(self._stops.feed(text))
        if self._stops.matched is not None:
            self._flush()
            self.over = True

    def _flush(self) -> None:
        """Let go of what was held back: no stop string and no marker comes of it any more."""
        self._utter(self._stops.rest())
        self._emit(TextDelta(self._blank))
        self._blank = ""

    def _utter(self, text: str) -> None:
        text = self._blank + text
        certain = len(text.rstrip()) if self._tools else len(text)  # a call may follow
        self._blank = text[certain:]
        self._emit(TextDelta(text[:certain]))

    def _think(self, text: str) -> None:
        """Take thoughts."""
        text = self._blank + text if self._thought else text.lstrip()
        certain = len(text.rstrip())
        self._blank = text[certain:]
        self._thought = self._thought or bool(certain)
        self._emit(ThinkingDelta(text[:certain]))

    # What forms tell of a call.

    def start(self, name: str) -> None:
        if self.over or (self._bare and name not in self._tools):
            raise Unparsable
        self._pieces.kept = None
        self._utter(self._stops.rest())
        self._blank, self._fresh, self.thinking = "", True, False
        index = len(self._calls)
        digest = blake2b(f"{self._stem}:{index}".encode(), digest_size=12).hexdigest()
        self._calls.append(name)
        self._emit(ToolCallStarted(index=index, id=f"call_{digest}", name=name))

    def arguments(self, text: str) -> None:
        self._emit(ToolCallDelta(index=len(self._calls) - 1, arguments=text))

    def schema(self) -> Mapping[str, Any]:
        tool = self._tools.get(self._calls[-1])
        properties = tool.parameters.get("properties") if tool else None
        return properties if isinstance(properties, Mapping) else {}

    # Answers with marks in them.

    def _marked(self) -> Reading[None]:
        pieces, calls = self._pieces, self._syntax.calls if self._tools else None
        if self._syntax.reasoning:
            yield from self._thoughts()
        if calls and calls.bare:
            pieces.kept = pieces.at
            if (yield from pieces.blank()) in ("{", "["):
                self._bare = True
                yield from self._section(calls)
                self._bare = False
            else:
                pieces.at, pieces.kept = pieces.kept, None
        opens = calls.opens if calls else ()
        while mark := (yield from pieces.until((*opens, *self._syntax.wrappers), self._say)):
            if calls and mark in opens:
                pieces.kept = pieces.at
                yield from self._section(calls)
            else:
                pieces.at += len(mark)
                self._blank, self._fresh = "", True

    def _thoughts(self) -> Reading[None]:
        """Pass the thoughts an answer begins with."""
        pieces, marks, calls = self._pieces, self._syntax.reasoning, self._syntax.calls
        if marks is None:
            return
        self.thinking = self.thinking or marks.implied
        pieces.kept = pieces.at
        yield from pieces.blank()
        opened = yield from pieces.mark((marks.opens,))
        if not (opened or self.thinking):
            pieces.at, pieces.kept = pieces.kept, None
            return
        pieces.at, pieces.kept = pieces.at + len(opened or ""), None
        self.thinking = True
        ends = calls.opens if calls and calls.ends_thinking and self._tools else ()
        end = yield from pieces.until((marks.closes, *ends), self._think)
        pieces.at += len(marks.closes) if end == marks.closes else 0
        self.thinking, self._blank, self._fresh = False, "", True

    def _section(self, calls: Calls) -> Reading[None]:
        """Pass calls, with what is around them; what begins like one and is none is text."""
        pieces = self._pieces
        while True:
            separated = yield from self._skip(calls)
            opened = separated or pieces.kept is not None
            pieces.kept = pieces.at if pieces.kept is None else pieces.kept
            form = yield from self._form(calls, opened)
            if form is None and not opened:
                pieces.kept = None
                return
            try:
                if form is None:
                    raise Unparsable  # noqa: TRY301 - it is the same to us
                yield from form.read(pieces, self)
            except Unparsable:
                pieces.at, pieces.kept = pieces.kept or 0, None
                mark = yield from pieces.mark(calls.opens)
                end = min(pieces.at + len(mark or " "), len(pieces.text))
                self._say(pieces.text[pieces.at : end])
                pieces.at = end
                return
            if not self._parallel:
                self.over = True
                return

    def _skip(self, calls: Calls) -> Reading[bool]:
        """
        Pass what stands around calls, and remember where it opens the next.

        Returns:
            Whether the last of it was a comma.
        """
        pieces, last = self._pieces, ""
        while True:
            yield from pieces.blank()
            mark = yield from pieces.mark(calls.around)
            if mark is None:
                return last == ","
            last = mark
            if mark in calls.opens and pieces.kept is None:
                pieces.kept = pieces.at
            pieces.at += len(mark)

    def _form(self, calls: Calls, opened: bool) -> Reading[Form | None]:
        """Return the form of the call that is next."""
        for form in calls.forms:
            if form.begins and (yield from self._pieces.mark((form.begins,))):
                return form
            if not form.begins and opened and (yield from self._pieces.peek()):
                return form
        return None

    # Answers that are messages on channels.

    def _harmony(self) -> Reading[None]:
        pieces = self._pieces
        while (yield from pieces.peek()) and not self.over:
            channel, name = yield from harmony.head(pieces)
            if name and self._tools:
                self.start(name)
                if (yield from pieces.blank()) == "{":
                    yield from json_text.value(pieces, self.arguments)
                end = yield from pieces.until(harmony.ENDS, lambda _: None)
                self.over = not self._parallel
            elif channel == "analysis":
                self.thinking, self._blank = True, "\n\n" if self._thought else ""
                end = yield from pieces.until(harmony.ENDS, self._think)
                self.thinking, self._blank = False, ""
            else:
                end = yield from pieces.until(harmony.ENDS, self._say)
            if end not in harmony.NEXT:
                pieces.at += len(end or "")
