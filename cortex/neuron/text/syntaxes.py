"""How families of models write their thoughts and calls: the form of the data."""

from __future__ import annotations

import re
from collections.abc import Iterator

import attrs

from cortex.neuron.constraint import CallSyntax
from cortex.neuron.text import harmony
from cortex.neuron.text.forms import Form


@attrs.frozen(kw_only=True)
class Reasoning:
    """
    What thoughts stand between.

    Attributes:
        sign: What a template of the family has in it.
        implied: The model thinks without opening, or may.
        blanks: White space behind the opening mark, before the closing one and behind it, unless
            the template tells.
    """

    family: str
    opens: str
    closes: str
    sign: str = ""
    implied: bool = False
    blanks: tuple[str, str, str] = ("", "", "")


@attrs.frozen(kw_only=True)
class Calls:
    """
    How calls are written.

    Attributes:
        sign: Matches a template of the family.
        opens: Any of these begins calls.
        around: What stands before, between and after calls and says nothing; `opens` too.
        forms: Of a call; the first that begins where a call may is the one.
        bare: A call may also be all there is of an answer, without any mark.
        ends_thinking: `opens` ends thoughts that were not closed.
        written: How to have them written, and to write them: None where nobody can say.
        in_python: What calls written in Python stand between.
        history_ids: What the template wants ids of calls to be: ``functions`` is
            ``functions.NAME:NUMBER``, ``nine`` is nine letters and digits.
    """

    family: str
    sign: re.Pattern[str]
    opens: tuple[str, ...]
    around: tuple[str, ...]
    forms: tuple[Form, ...]
    bare: bool = False
    ends_thinking: bool = False
    written: CallSyntax | None = None
    in_python: tuple[str, str] | None = None
    history_ids: str = ""


@attrs.frozen(kw_only=True)
class Syntax:
    """
    How a model's answers are to be read.

    Attributes:
        wrappers: Marks around the answer's text that are not part of it.
        harmony: The answer is a sequence of messages on channels; then nothing else counts.
    """

    reasoning: Reasoning | None = None
    calls: Calls | None = None
    wrappers: tuple[str, ...] = ()
    harmony: bool = False

    def marks(self) -> Iterator[str]:
        """Yield what must not be lost when tokens become text."""
        if self.harmony:
            yield from harmony.MARKS
        if self.reasoning:
            yield from (self.reasoning.opens, self.reasoning.closes)
        if self.calls:
            yield from self.calls.opens
            yield from self.calls.around
            for form in self.calls.forms:
                yield from form.marks()
        yield from self.wrappers
