"""
The job channel between the neuron and a device worker: messages, and how they are framed.

A frame is four bytes of length (big-endian) and a msgpack object.  Jobs go in, events come out;
every event names the model or request it is about, so a late one never reaches the wrong waiter.
"""

from __future__ import annotations

import msgspec

from cortex.errors import UpstreamDied
from cortex.neuron.engine.pictures import Picture, Sight
from cortex.neuron.engine.place import Place

MAX_FRAME_BYTES = 256 << 20
FAULTS = ("poison", "oom")


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What crosses the channel."""


class Load(Message, frozen=True, kw_only=True):
    """
    Load a checkpoint.

    Attributes:
        path: A ``.gguf`` file or a folder with config.json and safetensors.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        quant: ``fp8`` or ``int8``: keep the weights of all layers in eight bits.
        context: Tokens of context at most; None is the checkpoint's own limit.
        memory_bytes: What weights and cache may take here; None leaves it to *cache_fraction*,
            the share of what is free once the weights are there.
        max_sequences: Requests that run at once.
        max_batch_tokens: Tokens of one step.
        speculation: ``off``, ``ngram`` or ``auto``: what guesses ahead, *draft_tokens* at most.
        place: In the group that is to run it; None is this worker by itself.
        sums: ``auto`` or ``nccl``: what adds up over the ranks of a group that is not there yet.
    """

    model: str
    path: str
    dtype: str = "auto"
    quant: str | None = None
    context: int | None = None
    memory_bytes: int | None = None
    cache_fraction: float = 0.9
    max_sequences: int = 256
    max_batch_tokens: int = 2048
    speculation: str = "off"
    draft_tokens: int = 0
    place: Place | None = None
    sums: str = "auto"


class Unload(Message, frozen=True, kw_only=True):
    """Free a model's memory, or call off its load; its requests end with `Lost`."""

    model: str


class ReadText(Message, frozen=True, kw_only=True):
    """Read the text side of a checkpoint, whose weights may be missing; nothing is loaded."""

    id: str
    path: str


class Check(Message, frozen=True, kw_only=True):
    """
    Tell whether a checkpoint, whose weights may be missing, is of a kind the engine can run.

    Attributes:
        ranks: Of a group that is to run it.
    """

    id: str
    path: str
    ranks: int = 1


class Generate(Message, frozen=True, kw_only=True):
    """
    Continue *prompt* (token ids) by at most *max_tokens*.

    Attributes:
        temperature: 0 is greedy.
        top_k: 0 keeps all, and so does a *min_p* of 0.
        repetition_penalty: 1 is none.
        logprobs: Report each token's log probability, and those of this many likeliest.
        principal: Who asks; they take turns where requests wait.
        priority: Higher goes first.
        weight: How large a share of the turns the principal gets.
        ignore_eos: Go on to *max_tokens* where the model would end.
        grammar: What the answer must look like, for llguidance: Lark, or JSON of its own.
        pictures: Those in the prompt, in order; for models with a `Sight`.
        fault: One of `FAULTS`, to happen in its first step; for drills.
    """

    id: str
    model: str
    prompt: list[int]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    logprobs: int | None = None
    ignore_eos: bool = False
    principal: str = ""
    priority: int = 0
    weight: float = 1.0
    grammar: str | None = None
    pictures: list[Picture] = []
    fault: str | None = None

    @property
    def tokens(self) -> int:
        """Of prompt and answer at most."""
        return len(self.prompt) + self.max_tokens

    @property
    def penalises(self) -> bool:
        """Whether what may come depends on what was said."""
        penalties = self.frequency_penalty or self.presence_penalty
        return bool(penalties) or self.repetition_penalty != 1


class Embed(Message, frozen=True, kw_only=True):
    """
    Make a vector of each of *inputs* (token ids, none empty).

    Attributes:
        dimensions: Components to keep of each, which then has length one; None keeps all as is.
    """

    id: str
    model: str
    inputs: list[list[int]]
    dimensions: int | None = None


class Cancel(Message, frozen=True, kw_only=True):
    """Stop a request at the next step."""

    id: str


class Ping(Message, frozen=True, kw_only=True):
    """Ask for a `Pong`; answered whatever the device does."""


class Shutdown(Message, frozen=True, kw_only=True):
    """Leave."""


Job = Load | Unload | ReadText | Check | Generate | Embed | Cancel | Ping | Shutdown


class Ready(Message, frozen=True, kw_only=True):
    """The worker imported torch and owns its device."""

    torch: str
    device: str


class LoadProgress(Message, frozen=True, kw_only=True):
    """How far a load is: bytes of weights where they are read, else nothing of nothing."""

    model: str
    stage: str
    done: int
    total: int


class TextFiles(msgspec.Struct, frozen=True, kw_only=True):
    """
    What the neuron needs to turn messages into token ids and back.

    Attributes:
        tokenizer: tokenizer.json of the tokenizers library.
        tool_template: Another chat template for requests with tools, if the model has one.
        special_tokens: Strings a chat template may name, such as ``bos_token``.
        sampling: Those of `cortex.fleet.model.SamplingDefault` its generation config has.
        sight: None if it sees no pictures.
    """

    tokenizer: str
    chat_template: str | None
    special_tokens: dict[str, str]
    sampling: dict[str, float]
    tool_template: str | None = None
    sight: Sight | None = None


class Loaded(Message, frozen=True, kw_only=True):
    """
    The model can be used.

    Attributes:
        used_bytes: Of weights and cache.
        dimensions: Components of the vectors it makes; None if it makes text.
        body: How it runs: `fused`, `modules` or `plain`, and why no faster way.
    """

    model: str
    used_bytes: int
    context: int
    text: TextFiles
    dimensions: int | None = None
    body: str = ""


class LoadFailed(Message, frozen=True, kw_only=True):
    """The model could not be loaded; `code` is one of `cortex.errors`."""

    model: str
    code: str
    message: str
    details: dict[str, str | int | list[str]] = {}


class TextRead(Message, frozen=True, kw_only=True):
    """The answer to a `ReadText`."""

    id: str
    text: TextFiles


class Checked(Message, frozen=True, kw_only=True):
    """The answer to a `Check`: it is."""

    id: str


class TextFailed(Message, frozen=True, kw_only=True):
    """The answer to a `ReadText` or `Check` that failed; `code` is one of `cortex.errors`."""

    id: str
    code: str
    message: str
    details: dict[str, str | int | list[str]] = {}


class Unloaded(Message, frozen=True, kw_only=True):
    """The model's memory is free."""

    model: str


class Token(msgspec.Struct, frozen=True, array_like=True):
    """
    A token of a request's answer.

    Log probabilities are the model's own: before bias, penalties, grammar, temperature, top-k and
    top-p.

    Attributes:
        request: The id of its request.
        top: The likeliest token ids at this place with theirs, likeliest first.
    """

    request: str
    id: int
    logprob: float | None = None
    top: list[tuple[int, float]] = []


class Tokens(Message, frozen=True, kw_only=True):
    """What one step produced."""

    tokens: list[Token]


class Done(Message, frozen=True, kw_only=True):
    """
    A request ended.

    Attributes:
        reason: ``stop`` (an end token), ``length`` or ``cancelled``.
        cached_tokens: Of the prompt, found in the cache.
    """

    id: str
    reason: str
    completion_tokens: int
    cached_tokens: int = 0
    queue_ms: float
    prefill_ms: float
    decode_ms: float


class Embedded(Message, frozen=True, kw_only=True):
    """
    The vectors a request asked for.

    Attributes:
        vectors: Of all inputs in their order, *width* floats of 32 bits each.
    """

    id: str
    width: int
    vectors: bytes


class Figures(Message, frozen=True, kw_only=True):
    """
    What a model does; told twice a second while that changes.

    Attributes:
        running: Requests that are computed; *waiting* for room is the rest of them.
        kv_used_pct: The share of its cache that requests hold; None if it has no cache of ours.
        asked_tokens: Prompt tokens of all requests since its load; *hit_tokens* of them were found
            in the cache.
        preemptions: How often a request gave its part of the cache back, since its load.
        drafted_tokens: Tokens that were guessed and tried; *accepted_tokens* of them came true.
        tok_s: Tokens generated a second since it told last.
    """

    model: str
    running: int
    waiting: int = 0
    kv_used_pct: float | None = None
    asked_tokens: int = 0
    hit_tokens: int = 0
    preemptions: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    tok_s: float = 0.0


class Lost(Message, frozen=True, kw_only=True):
    """A request failed; the others go on; `code` is one of `cortex.errors`."""

    id: str
    message: str
    code: str = UpstreamDied.code


class Pong(Message, frozen=True, kw_only=True):
    """How long the step in flight has run; 0 between steps."""

    busy_s: float


class Poisoned(Message, frozen=True, kw_only=True):
    """The device's context is beyond use; the worker leaves."""

    message: str


Event = (
    Ready
    | LoadProgress
    | Loaded
    | LoadFailed
    | TextRead
    | Checked
    | TextFailed
    | Unloaded
    | Tokens
    | Done
    | Embedded
    | Figures
    | Lost
    | Pong
    | Poisoned
)

End = Done | Embedded | Lost

encode = msgspec.msgpack.Encoder().encode
decode_job = msgspec.msgpack.Decoder(Job).decode
decode_event = msgspec.msgpack.Decoder(Event).decode
