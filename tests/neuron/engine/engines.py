"""Small random models of many families, and engines over them without a worker around."""

from __future__ import annotations

import random

import torch
import transformers

from cortex.neuron.engine.batching import Batching
from cortex.neuron.engine.blocks import Blocks
from cortex.neuron.engine.cache import Cache
from cortex.neuron.engine.drafts import Foreseen
from cortex.neuron.engine.jobs import Done, Generate, Lost
from cortex.neuron.engine.modules import Modules, record, recurrences
from cortex.neuron.engine.runner import Runner
from cortex.neuron.engine.snapshots import Snapshots

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,  # so that who attends to what has a say
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SHARED = {"shared_expert_intermediate_size": 32}
HYBRID = ["linear_attention", "full_attention", "linear_attention"]
LINEAR = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 24},
    "gemma3_text": {"head_dim": 16, "sliding_window": 24},
    "phi3": {},
    "granite": {"logits_scaling": 3.0, "residual_multiplier": 0.7},
    "qwen3_moe": {"head_dim": 16, **EXPERTS},
    "olmo2": {},
    "gemma2": {"head_dim": 16, "sliding_window": 24},
    "gpt_oss": {
        "head_dim": 16,
        "num_local_experts": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "sliding_window": 24,
    },
    "gpt2": {"n_positions": 1024},
    "qwen3_5_text": {"layer_types": HYBRID, **LINEAR},
    "qwen3_5_moe_text": {"layer_types": HYBRID, **LINEAR, **EXPERTS, **SHARED},
    "qwen3_next": {"layer_types": HYBRID, **LINEAR, **EXPERTS, **SHARED},
}
HYBRIDS = ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next")
STACKS = ("llama", "qwen2", "qwen3", "mistral", "phi3", "granite", "qwen3_moe", "gpt_oss", *HYBRIDS)


def model_of(family, **sizes):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family], **sizes})
    module = transformers.AutoModelForCausalLM.from_config(config).eval().to(DEVICE)
    for parameter in module.parameters():
        if family in HYBRIDS and parameter.ndim == 1:  # made all ones or zeros
            parameter.data += 0.3 * torch.randn_like(parameter)
    return module


def engine_of(
    module,
    *,
    body=None,
    tower=None,
    blocks=200,
    rows=16,
    snapshots=20,
    mtp=None,
    draft_tokens=3,
    **limits,
):
    cache = cache_of(module, blocks, 1 + 2 * rows + snapshots)
    body = body or Modules(module)
    more = {"tower": tower, "mtp": mtp, "draft_tokens": draft_tokens}
    runner = Runner(body, cache, rows=rows, blocks=blocks, device=DEVICE, **more)
    if mtp is not None:
        limits |= {"guesser": Foreseen, "foreseen_tokens": draft_tokens}
    return batching_of(runner, cache, blocks, rows, snapshots, **limits)


def cache_of(module, blocks, slots):
    heads, recurrent = record(module, torch.arange(3, device=DEVICE)), recurrences(module)
    return Cache(heads, blocks, module.dtype, DEVICE, recurrent=recurrent, slots=slots)


def batching_of(
    runner, cache, blocks, rows, snapshots, *, budget_tokens=64, runs_ahead=False, end_tokens=(),
    **more,
):  # fmt: skip
    return Batching(
        runner,
        Blocks(blocks),
        rows=rows,
        budget_tokens=budget_tokens,
        end_tokens=frozenset(end_tokens),
        runs_ahead=runs_ahead,
        snapshots=Snapshots(1 + rows, snapshots) if cache.states.layers else None,
        **more,
    )


class Oracle:
    """Guesses what will be said, now and then a token of it wrong."""

    def __init__(self, answers, made, most=4, rate=0.25):
        self._answers, self._made, self._most, self._rate = answers, made, most, rate

    def drafts(self, tokens, foreseen):
        for prompt, answer in self._answers:
            whole = [*prompt, *answer]
            if len(tokens) >= len(prompt) and whole[: len(tokens)] == list(tokens):
                count = self._made.randrange(self._most + 1)
                true = whole[len(tokens) : len(tokens) + count]
                return [t if self._made.random() > self._rate else (t + 1) % 300 for t in true]
        return []

    def settle(self, drafted, accepted):
        assert 0 <= accepted <= drafted


def greedy(module, prompt, count):
    """Return what the model's own forward says, a token after the other, without any cache."""
    module.set_attn_implementation("eager")
    tokens = list(prompt)
    for _ in range(count):
        logits = module(input_ids=torch.tensor([tokens], device=DEVICE), use_cache=False).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def ask(name, prompt, count, **more):
    more = {"temperature": 0.0, **more}
    return Generate(id=name, model="m", prompt=list(prompt), max_tokens=count, **more)


def stepped(engine, losing=()):
    """Step; return its tokens and ends, of which none but those of *losing* failed."""
    tokens, ended = engine.step()
    lost = {event.id: event.message for event in ended if isinstance(event, Lost)}
    assert lost.keys() <= {*losing}, lost
    return tokens, ended


def run(engine, jobs=(), until=None, losing=()):
    """Return what was said, by request, and how each ended: well, but for those of *losing*."""
    for job in jobs:
        engine.add(job)
    said, ends = {}, {}
    while engine.has_work and not (until and until(said)):
        tokens, ended = stepped(engine, losing)
        for token in tokens:
            said.setdefault(token.request, []).append(token.id)
        ends |= {event.id: event for event in ended}
    return said, ends


def prompts(count, seed=0, shared=0):
    made = random.Random(seed)
    beginning = [made.randrange(3, 300) for _ in range(shared)]
    lengths = [made.choice([1, 5, 16, 17, 40, 90]) for _ in range(count)]
    return [beginning + [made.randrange(3, 300) for _ in range(n)] for n in lengths]


def check_schedule(engine, arrivals, asked, wanted, steps):
    """
    Run requests that come and go, and compare what they are told.

    Args:
        engine: That is asked.
        arrivals: Which prompt, tokens of its answer, when it comes, and how many steps later its
            client leaves, if it does.
        asked: The prompts.
        wanted: Their answers, at least as long as any that is asked for.
        steps: How many there are at least.
    """
    said, left, step = {}, set(), 0
    while engine.has_work or step <= steps:
        for number, (prompt, count, comes, goes) in enumerate(arrivals):
            if step == comes:
                engine.add(ask(str(number), asked[prompt], count))
            elif goes is not None and step == comes + goes and engine.cancel(str(number)):
                left.add(str(number))
        tokens, ended = engine.step()
        assert all(isinstance(event, Done) for event in ended)
        for token in tokens:
            said.setdefault(token.request, []).append(token.id)
        engine.scheduler.check()
        step += 1
    for number, (prompt, count, *_) in enumerate(arrivals):
        answer = said.get(str(number), [])
        assert answer == wanted[prompt][:count][: len(answer)]
        assert len(answer) == count or str(number) in left
