"""A request as every part of cortex sees it, whatever dialect it came in."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import attrs

Role = Literal["system", "user", "assistant", "tool"]
Prompt = str | tuple[int, ...]
MAX_STOPS = 256  # each is looked for at every token


@attrs.frozen
class Text:
    """A piece of text."""

    text: str


@attrs.frozen(kw_only=True)
class Image:
    """
    A picture.

    Attributes:
        url: A ``data:`` URI with base64, or ``http(s)://``.
        detail: ``low``, ``high`` or ``auto``, where a client says so.
    """

    url: str
    detail: str | None = None


@attrs.frozen
class Thinking:
    """What the model thought in an earlier turn of its own."""

    text: str


@attrs.frozen(kw_only=True)
class ToolCall:
    """
    A call the model made in an earlier turn.

    Attributes:
        arguments: A JSON object as text, as the model wrote it; empty is none.
    """

    id: str
    name: str
    arguments: str = ""


@attrs.frozen(kw_only=True)
class ToolResult:
    """What came of a call; nothing in it is an empty result, not a missing one."""

    call_id: str
    parts: tuple[Text | Image, ...] = ()
    is_error: bool = False

    @property
    def text(self) -> str:
        """All text of the result."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))


Part = Text | Image | Thinking | ToolCall | ToolResult


@attrs.frozen(kw_only=True)
class Message:
    """
    One turn; a turn without content has no parts.

    Only an assistant's turn has `Thinking` and `ToolCall`; a turn of role ``tool`` has `ToolResult`
    parts and no other turn has any.
    """

    role: Role
    parts: tuple[Part, ...] = ()

    @property
    def text(self) -> str:
        """All text of the turn; parts are joined as they are, so every spelling renders alike."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))


@attrs.frozen(kw_only=True)
class Tool:
    """
    A function the model may call.

    Attributes:
        parameters: JSON Schema of the arguments, passed on as it came.
        strict: The arguments must follow the schema.
        kind: ``custom`` takes free text: its one argument is ``{"input": string}``.
        namespace: The group a client put it in; `name` then begins with it and two underscores.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = attrs.field(factory=dict)
    strict: bool = False
    kind: Literal["function", "custom"] = "function"
    namespace: str | None = None


@attrs.frozen(kw_only=True)
class ToolChoice:
    """
    Which tools the model may or must call.

    Attributes:
        mode: ``required`` asks for at least one call.
        name: With ``required``: of this tool.
        parallel: More than one call in a turn is welcome.
    """

    mode: Literal["auto", "none", "required"] = "auto"
    name: str | None = None
    parallel: bool = True


@attrs.frozen(kw_only=True)
class JsonFormat:
    """
    The answer must be JSON.

    Attributes:
        schema: JSON Schema it must follow; None is any object.
        name: What the client calls the schema.
    """

    schema: Mapping[str, Any] | None = None
    name: str = ""
    description: str = ""
    strict: bool = True


@attrs.frozen(kw_only=True)
class Reasoning:
    """
    How much to think before the answer; None is "no opinion".

    Attributes:
        effort: ``none``, ``minimal``, ``low``, ``medium`` or ``high``.
        budget_tokens: Tokens of thought at most, where a client says so.
    """

    enabled: bool | None = None
    effort: str | None = None
    budget_tokens: int | None = None


@attrs.frozen(kw_only=True)
class Sampling:
    """
    How to pick tokens.  None means "no opinion": the model's defaults decide.

    Attributes:
        temperature: 0 is greedy; 0..2.
        top_p: Keep the smallest set of tokens with this mass; 0 < top_p <= 1.
        top_k: Keep this many tokens; 0 keeps all.
        min_p: Keep tokens at least this share as likely as the likeliest; 0 keeps all, up to 1.
        repetition_penalty: Positive logits of tokens in prompt or answer are divided by it,
            negative ones multiplied; 1 is none, 0 < repetition_penalty <= 10.
        seed: Same seed, same tokens.
        max_tokens: Tokens to generate at most; clamped to the context.
        ignore_eos: Go on to `max_tokens` where the model would end.
        stop: Strings that end the answer; they are not part of it.
        frequency_penalty: Taken off a token's logit for each time the answer has it; -2..2.
        presence_penalty: Taken off the logit of a token the answer has; -2..2.
        logit_bias: Added to logits, by token id; -100..100.
        logprobs: Report each token's log probability, and those of this many likeliest.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = attrs.field(factory=dict)
    logprobs: int | None = None

    def asks(self, name: str) -> bool:
        """Tell whether the field *name* wants something: it is neither open nor neutral."""
        value = getattr(self, name)
        return value not in (getattr(OPEN, name), NEUTRAL.get(name))


OPEN = Sampling()
NEUTRAL = MappingProxyType({"top_k": 0, "min_p": 0, "repetition_penalty": 1})


@attrs.frozen(kw_only=True)
class ChatRequest:
    """
    One request for text: a conversation to go on with, or bare prompts.

    Attributes:
        id: Ours, for headers, logs and cancellation.
        model: The name the client used; answers repeat it.
        prompts: Texts or token ids to continue as they are; then there are no `messages`.
        n: Answers wanted, to each prompt.
        reasoning: How much to think.
        template_args: What the client hands to the chat template.
        include_usage: A streaming client asked for the token counts.
        principal: Who asks, where a gateway says so; its requests take turns with others'.
        priority: Higher goes first.
        weight: How large a share of what is scarce the principal gets.
        resumes: The last turn is the beginning of this very answer: its tokens are the answer's.
        private: The dialect's own, for its encoder; nobody else looks at it.
    """

    id: str
    model: str
    messages: tuple[Message, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    n: int = 1
    sampling: Sampling = attrs.field(factory=Sampling)
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = attrs.field(factory=ToolChoice)
    format: JsonFormat | None = None
    reasoning: Reasoning = attrs.field(factory=Reasoning)
    template_args: Mapping[str, Any] = attrs.field(factory=dict)
    stream: bool = False
    include_usage: bool = False
    principal: str = ""
    priority: int = 0
    weight: float = 1.0
    resumes: bool = False
    private: Any = None

    def choices(self) -> tuple[ChatRequest, ...]:
        """Return one request for each answer wanted; a seed is another for each of them."""
        if not self.prompts and self.n == 1:
            return (self,)
        seed = self.sampling.seed
        each: list[tuple[Prompt, ...]] = [(prompt,) for prompt in self.prompts] or [()]
        return tuple(
            attrs.evolve(
                self,
                n=1,
                prompts=prompts,
                sampling=attrs.evolve(self.sampling, seed=None if seed is None else seed + number),
            )
            for prompts in each
            for number in range(self.n)
        )


@attrs.frozen(kw_only=True)
class EmbeddingRequest:
    """
    One request for vectors.

    Attributes:
        inputs: Texts or token ids; a vector each.
        dimensions: Components to keep of each vector, which is then normalised again.
    """

    id: str
    model: str
    inputs: tuple[Prompt, ...]
    dimensions: int | None = None
    private: Any = None


@attrs.frozen(kw_only=True)
class Embeddings:
    """
    A vector for each input, and the tokens they took.

    Vectors have length one unless the model's own files have it otherwise.
    """

    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: int


@attrs.frozen(kw_only=True)
class RequestHead:
    """
    What the gateway reads of a request before it routes it.

    Attributes:
        model: The catalogue's id, aliases resolved.
        dialect: The client's.
        operation: What it wants of the model, one of `cortex.api.Operation`.
        principal: Who asks, or an empty string; who asks for less goes first.
        priority: Higher goes first.
        weight: How large a share of what is scarce the principal gets.
        affinity: The same for all requests of one conversation, or an empty string; read only for a
            strategy that has `reads_affinity`.
    """

    id: str
    model: str
    stream: bool = False
    dialect: str = ""
    operation: str = "chat"
    principal: str = ""
    priority: int = 0
    weight: float = 1.0
    affinity: str = ""


@attrs.frozen(kw_only=True)
class Ties:
    """
    What a request has to do with kept answers.

    Attributes:
        replies: Ids of the answers it goes on from, or takes something out of.
        keep: Its own answer is to be kept.
    """

    replies: tuple[str, ...] = ()
    keep: bool = False
