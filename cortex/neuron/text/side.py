"""
The text side of one model: what a request's prompt is, and what its tokens say.

Works on what the device worker exported (`TextFiles`), with the tokenizers library and jinja2: the
neuron's own process never imports transformers.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from cortex.chat.request import ChatRequest, Tool
from cortex.errors import InvalidRequest, ToolsUnsupported, UnsupportedParameter
from cortex.neuron.engine.jobs import TextFiles
from cortex.neuron.text.answer import Answer
from cortex.neuron.text.conversation import thinking_arguments, turns_of, written_tools
from cortex.neuron.text.families import detect
from cortex.neuron.text.parser import Parser
from cortex.neuron.text.syntaxes import Syntax
from cortex.neuron.text.template import Template
from cortex.neuron.text.tokens import Vocabulary

BEFORE_TOKENS = 8  # of a bare prompt, to go on from in the middle of a word


@attrs.frozen(kw_only=True)
class Prompt:
    """
    What a model is asked to go on from.

    Attributes:
        ids: Its tokens, at least one.
        said: What they say, if the client gave tokens.
        syntax: How the answer is to be read.
        thinking: It has opened the model's thoughts.
        tools: Those the model is told of.
    """

    ids: list[int]
    said: str | None = None
    syntax: Syntax = attrs.field(factory=Syntax)
    thinking: bool = False
    tools: tuple[Tool, ...] = ()


class Text:
    """
    Chat template and tokenizer of one model.

    Attributes:
        capabilities: What its template lets it do.
    """

    def __init__(self, files: TextFiles) -> None:
        self.vocabulary = Vocabulary(files.tokenizer)
        self._template: Template | None = None
        self._syntax = Syntax()
        self.capabilities: tuple[str, ...] = ("text",)
        if files.chat_template:
            self._template = Template(files.chat_template, files.special_tokens)
            self._syntax = detect(files.chat_template)
            if self._template.abilities.tools:
                self.capabilities += ("tools",)
            if self._syntax.reasoning or self._syntax.harmony:
                self.capabilities += ("reasoning",)

    def prompt(self, request: ChatRequest) -> Prompt:
        """
        Return the prompt of a request for one answer.

        Raises:
            InvalidRequest: The model cannot be asked this; says why.
        """
        return self._bare(request) if request.prompts else self._chat(request)

    def answer(self, request: ChatRequest, prompt: Prompt) -> Answer:
        """Return what reads the answer to a prompt."""
        parser = Parser(
            prompt.syntax,
            stem=f"{request.id}:{len(request.messages)}",
            tools=prompt.tools,
            parallel=request.tool_choice.parallel,
            stop=request.sampling.stop,
            thinking=prompt.thinking,
        )
        before = prompt.ids[-BEFORE_TOKENS:] if request.prompts else ()
        detokenizer = self.vocabulary.detokenizer(prompt.syntax.marks(), before)
        wants_logprobs = request.sampling.logprobs is not None
        return Answer(parser, detokenizer, self.vocabulary if wants_logprobs else None)

    def _bare(self, request: ChatRequest) -> Prompt:
        prompt = request.prompts[0]
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
        if strange := next((n for n in ids if not 0 <= n < self.vocabulary.size), None):
            raise InvalidRequest(
                f"prompt: the model has no token {strange}, its ids end at"
                f" {self.vocabulary.size - 1}",
                param="prompt",
            )

    def _chat(self, request: ChatRequest) -> Prompt:
        template, syntax = self._template, self._syntax
        if template is None:
            raise InvalidRequest("the model has no chat template", param="messages")
        tools = request.tools if request.tool_choice.mode != "none" else ()
        if request.tool_choice.mode == "required":
            raise UnsupportedParameter("tool_choice: calls cannot be forced", param="tool_choice")
        abilities, calls = template.abilities, syntax.calls
        turns = turns_of(request.messages, abilities, calls.history_ids if calls else "")
        arguments = {**thinking_arguments(request.reasoning), **request.template_args}
        if tools and not abilities.tools:
            raise ToolsUnsupported("the model's chat template does not know tools", param="tools")
        try:
            text = template.render(turns, written_tools(tools), **arguments)
        except InvalidRequest as error:
            if not tools:
                raise
            template.render(turns, **arguments)  # raises if it is not for the tools
            raise ToolsUnsupported(error.message, param="tools") from None
        end = text.rstrip()
        thinking = False
        if reasoning := syntax.reasoning:
            thinking = end.endswith(reasoning.opens.rstrip())
            if end.endswith(reasoning.closes):
                syntax = attrs.evolve(syntax, reasoning=attrs.evolve(reasoning, implied=False))
        ids = self.vocabulary.encode(text, special=False)
        return Prompt(ids=ids, syntax=syntax, thinking=thinking, tools=tools)
