"""
The text side of a model: messages to token ids, token ids to text.

Works on what the device worker exported (`TextFiles`), with the tokenizers library and jinja2: the
neuron's own process never imports transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import attrs

from cortex.chat.request import Message
from cortex.errors import InvalidRequest
from cortex.neuron.engine.jobs import TextFiles


class Text:
    """Chat template and tokenizer of one model."""

    def __init__(self, files: TextFiles) -> None:
        from tokenizers import Tokenizer

        self._tokenizer: Any = Tokenizer.from_str(files.tokenizer)
        self.vocabulary = int(self._tokenizer.get_vocab_size())  # token ids
        self._special_tokens = files.special_tokens
        self._template = compile_template(files.chat_template) if files.chat_template else None

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """
        Render the chat template and tokenize it, up to where the assistant answers.

        Raises:
            InvalidRequest: The template refuses these messages, or there is none.
        """
        from jinja2 import TemplateError

        if self._template is None:
            raise InvalidRequest("the model has no chat template", param="messages")
        turns = [{"role": message.role, "content": message.text} for message in messages]
        try:
            prompt = self._template.render(
                messages=turns, add_generation_prompt=True, **self._special_tokens
            )
        except TemplateError as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from None
        ids: list[int] = self._tokenizer.encode(prompt, add_special_tokens=False).ids
        return ids

    def decoder(self, stop: Sequence[str]) -> Decoder:
        """Return the decoder of one answer."""
        return Decoder(self._tokenizer, stop)


def compile_template(source: str) -> Any:
    """Compile a chat template as transformers does: sandboxed, with its extra names."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now(UTC).strftime(form)
    return environment.from_string(source)


@attrs.define
class Decoder:
    """
    Detokenizes one answer as it comes.

    Text that may be the start of a stop string is held back until it is not; half a character is
    held back until it is whole.

    Attributes:
        matched: The stop string that ended the answer, if one did.
    """

    _tokenizer: Any
    _stop: Sequence[str]
    matched: str | None = attrs.field(default=None, init=False)
    _held: str = attrs.field(default="", init=False)
    _stream: Any = attrs.field(default=None, init=False)

    def feed(self, token: int) -> str:
        """Return the text that is certain after *token*; often nothing."""
        if self._stream is None:
            from tokenizers.decoders import DecodeStream

            self._stream = DecodeStream(skip_special_tokens=True)
        return self._release(self._stream.step(self._tokenizer, token) or "")

    def finish(self) -> str:
        """Return what was held back; call it once the answer is complete."""
        held, self._held = self._held, ""
        return "" if self.matched else held

    def _release(self, text: str) -> str:
        text = self._held + text
        found = [(at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            at, self.matched = min(found)
            self._held = ""
            return text[:at]
        keep = max((overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of *text* that begins *stop*."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
