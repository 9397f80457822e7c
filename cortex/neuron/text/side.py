"""
The text side of one model: what a request's prompt is, and what its tokens say.

Works on what the device worker exported (`TextFiles`), with the tokenizers library and jinja2: the
neuron's own process never imports transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import attrs

from cortex.chat.request import ChatRequest, Image, Message, Tool
from cortex.chat.turns import images_of, refuse_images
from cortex.errors import InvalidImage, InvalidRequest, ToolsUnsupported, UnsupportedParameter
from cortex.neuron.constraint import Constraint
from cortex.neuron.engine.jobs import TextFiles
from cortex.neuron.engine.pictures import Picture
from cortex.neuron.text.answer import Answer
from cortex.neuron.text.begun import Begun, blanks_of, split, written
from cortex.neuron.text.conversation import (
    thinking_arguments,
    turns_for,
    with_schemas,
    with_tools,
    written_tools,
    written_turns,
)
from cortex.neuron.text.families import HARMONY, detect
from cortex.neuron.text.parser import Parser
from cortex.neuron.text.slots import Slots
from cortex.neuron.text.syntaxes import Syntax
from cortex.neuron.text.template import Template
from cortex.neuron.text.tokens import Vocabulary

BEFORE_TOKENS = 8  # of a bare prompt, to go on from in the middle of a word
Seen = Mapping[Image, Picture]
NOTHING: Seen = MappingProxyType({})


@attrs.frozen(kw_only=True)
class Prompt:
    """
    What a model is asked to go on from.

    Attributes:
        ids: Its tokens, at least one.
        said: What they say, if the client gave tokens.
        syntax: How the answer is to be read.
        thinking: It opens the model's thoughts, or closes them; None if it does neither.
        tools: Those the model is told of.
        begun: The beginning of the answer, at its end.
        pictures: Those in it, in order.
    """

    ids: list[int]
    said: str | None = None
    syntax: Syntax = attrs.field(factory=Syntax)
    thinking: bool | None = None
    tools: tuple[Tool, ...] = ()
    begun: Begun | None = None
    pictures: list[Picture] = attrs.field(factory=list)


class Text:
    """
    Chat template and tokenizer of one model.

    Attributes:
        capabilities: What its template lets it do.
        sight: How it sees; None if it does not, or its template has no place for images.
    """

    def __init__(self, files: TextFiles) -> None:
        self.vocabulary = Vocabulary(files.tokenizer)
        self._slots = Slots(self.vocabulary, files.sight) if files.sight else None
        placeholder = self._slots.placeholder if self._slots else None
        plain, with_tools = files.chat_template, files.tool_template or files.chat_template
        self._template = Template(plain, files.special_tokens, placeholder) if plain else None
        self._tool_template = self._template
        if with_tools and with_tools != plain:
            self._tool_template = Template(with_tools, files.special_tokens, placeholder)
        sees = self._template is not None and self._template.abilities.images
        self.sight = files.sight if sees else None
        tokens = " ".join(self.vocabulary.special.values())
        self._syntax = detect(f"{plain or ''}{with_tools or ''}", tokens)
        tools = self._tool_template is not None and self._tool_template.abilities.tools
        reasoning = self._syntax.harmony or self._syntax.reasoning is not None
        found = (("text", True), ("vision", sees), ("tools", tools), ("reasoning", reasoning))
        self.capabilities = tuple(name for name, there in found if there)

    def prompt(self, request: ChatRequest, seen: Seen = NOTHING) -> Prompt:
        """
        Return the prompt of a request for one answer.

        Args:
            request: It.
            seen: All its images, if the model has `sight`.

        Raises:
            InvalidRequest: The model cannot be asked this; says why.
        """
        try:
            return self._bare(request) if request.prompts else self._chat(request, seen)
        except RecursionError:
            raise InvalidRequest("messages: something in them is nested too deeply") from None

    def read(self, request: ChatRequest, seen: Seen = NOTHING) -> tuple[Prompt, str | None]:
        """Return `prompt` and `grammar` of a request; arguments are those of the first."""
        prompt = self.prompt(request, seen)
        return prompt, self.grammar(request, prompt)

    def grammar(self, request: ChatRequest, prompt: Prompt) -> str | None:
        """
        Return what holds the answer to the form the request wants; None is no form.

        Raises:
            InvalidRequest: It cannot be held to it; says why.
        """
        choice, calls = request.tool_choice, prompt.syntax.calls
        required = choice.mode == "required"
        strict = choice.mode == "auto" and any(tool.strict for tool in prompt.tools)
        if prompt.syntax.harmony or not (calls and calls.written):
            strict = False  # there is no way to
        if request.format is None and not required and not strict:
            return None
        if prompt.begun is not None and prompt.begun.written:
            raise UnsupportedParameter(
                "messages: an answer that was begun cannot be held to a form, nor to a call",
                param="messages",
            )
        if prompt.syntax.harmony:
            constraint = attrs.evolve(HARMONY, special=self.vocabulary.marks)
        else:
            marks = prompt.syntax.reasoning if prompt.thinking is not False else None
            opened = marks is None or prompt.thinking or marks.implied
            constraint = Constraint(
                syntax=calls.written if calls else None,
                thought=marks.closes if marks else None,
                opening=marks.opens if marks and not opened else None,
                special=self.vocabulary.marks,
            )
        if prompt.tools and constraint.syntax is None:
            param = "tool_choice" if required else "response_format"
            raise UnsupportedParameter(
                f"{param}: nobody can hold this model to a form of its calls", param=param
            )
        return constraint.grammar(request.format, prompt.tools, choice)

    def answer(self, request: ChatRequest, prompt: Prompt) -> Answer:
        """Return what reads the answer to a prompt."""
        parser = Parser(
            prompt.syntax,
            stem=f"{request.id}:{len(request.messages)}",
            tools=prompt.tools,
            parallel=request.tool_choice.parallel,
            stop=request.sampling.stop,
            thinking=bool(prompt.thinking),
        )
        behind = BEFORE_TOKENS if request.prompts else 0
        if prompt.begun is not None:
            behind = min(BEFORE_TOKENS, prompt.begun.tokens)
        before = prompt.ids[-behind:] if behind else ()
        detokenizer = self.vocabulary.detokenizer(prompt.syntax.marks(), before)
        wants_logprobs = request.sampling.logprobs is not None
        vocabulary = self.vocabulary if wants_logprobs else None
        return Answer(parser, detokenizer, vocabulary, prompt.begun)

    def _bare(self, request: ChatRequest) -> Prompt:
        prompt = request.prompts[0]
        if self._slots:
            self._slots.refuse(prompt)
        if isinstance(prompt, str):
            ids, said = self.vocabulary.encode(prompt, special=True), None
        else:
            ids = list(prompt)
            self._check(ids)
            said = self.vocabulary.decode(ids)
        if not ids:
            raise InvalidRequest("the prompt is empty", param="prompt")
        return Prompt(ids=ids, said=said)

    def _check(self, ids: Sequence[int]) -> None:
        end = self.vocabulary.size
        for number in ids:
            if not 0 <= number < end:
                raise InvalidRequest(
                    f"prompt: the model has no token {number}, its ids end at {end - 1}",
                    param="prompt",
                )

    def _chat(self, request: ChatRequest, seen: Seen) -> Prompt:
        tools = with_schemas(request.tools) if request.tool_choice.mode != "none" else ()
        if request.tool_choice.mode == "required" and not tools:
            raise InvalidRequest("tool_choice: there are no tools", param="tool_choice")
        template = self._tool_template if tools else self._template
        if template is None:
            raise InvalidRequest("the model has no chat template", param="messages")
        if self.sight is None:
            refuse_images(request.messages, request.model)
        messages, begun = split(request.messages)
        turns = turns_for(messages, template.abilities, self._syntax.calls)
        text = self._rendered(template, turns, request, tools)
        syntax, end = self._syntax, text.rstrip()
        thinking = None
        if marks := syntax.reasoning:
            opened, closed = end.endswith(marks.opens.rstrip()), end.endswith(marks.closes)
            thinking = opened if opened or closed else None
            if closed:
                syntax = attrs.evolve(syntax, reasoning=attrs.evolve(marks, implied=False))
        ids, pictures = self._encode(text), list[Picture]()
        if self._slots:
            ids, pictures = self._slots.filled(ids, [seen[image] for image in images_of(turns)])
        if len(pictures) < (asked := len(images_of(request.messages))):
            raise InvalidImage(
                f"the model can be shown {len(pictures)} of {asked} images where they are",
                param="messages",
            )
        if begun is not None:
            blanks = blanks_of(template, marks) if marks else ("", "", "")
            said = written(begun, syntax, blanks, opened=thinking)
            more = self._encode(self._guarded(said))
            text_tokens = len(self._encode(self._guarded(begun.text)))
            thought = len(more) - text_tokens if begun.thought else 0
            begun = attrs.evolve(begun, written=said, tokens=len(more), thought_tokens=thought)
            ids += more
        return Prompt(
            ids=ids, syntax=syntax, thinking=thinking, tools=tools, begun=begun, pictures=pictures
        )

    def _guarded(self, value: Any) -> Any:
        return self._slots.guarded(value) if self._slots else value

    def _encode(self, text: str) -> list[int]:
        return (
            self._slots.encode(text) if self._slots else self.vocabulary.encode(text, special=False)
        )

    def _rendered(
        self,
        template: Template,
        said: Sequence[Message],
        request: ChatRequest,
        tools: tuple[Tool, ...],
    ) -> str:
        turns = self._guarded(written_turns(said, template.abilities, self._syntax.calls))
        arguments = {**thinking_arguments(request.reasoning), **request.template_args}
        arguments = self._guarded(arguments)
        if not tools:
            return template.render(turns, **arguments)
        if not template.abilities.tools:
            raise ToolsUnsupported(
                "the model's chat template does not know tools: ask it without, or another model",
                param="tools",
            )
        written = self._guarded(written_tools(tools))
        if template.abilities.tools_in_system:
            return template.render(with_tools(turns, written), **arguments)
        try:
            return template.render(turns, written, **arguments)
        except InvalidRequest as error:
            template.render(turns, **arguments)  # raises if it is not for the tools
            raise ToolsUnsupported(error.message, param="tools") from None
