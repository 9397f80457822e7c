"""
Models split over several GPUs of a host: values first, then speed beside one GPU.

    python benchmarks/gpu_tp.py                all of it on two GPUs, under eight minutes
    python benchmarks/gpu_tp.py --models 8B    less of it
    python benchmarks/gpu_tp.py --tiny         of itself: two CPU processes, models of no size

Each rank is a process of its own that sees one GPU, as a worker does, and all run this program side
by side; rank 0 tells.  Models to be measured have random weights of the real shapes; split ones are
measured with all sums by NCCL, then with small ones in shared memory.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from gpu_clock import longest, seconds  # noqa: E402
from gpu_ranks import Here, device_of, grouped, leave, start  # noqa: E402
from gpu_steps import stepper  # noqa: E402
from gpu_sums import endures, reductions  # noqa: E402

from cortex.neuron.engine import plan, probe  # noqa: E402
from cortex.neuron.engine.jobs import Done, Generate, Load  # noqa: E402
from cortex.neuron.engine.leading import Follower  # noqa: E402
from cortex.neuron.engine.model import Model, build  # noqa: E402
from cortex.neuron.engine.runner import Runner  # noqa: E402
from cortex.neuron.engine.shards import Shards  # noqa: E402
from cortex.neuron.engine.weights import Weights  # noqa: E402

LIMIT_S = 450
WAYS = ("one", "nccl", "shared")
QWEN3 = {
    "vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False,
    "max_position_embeddings": 40960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "8B": {
        **QWEN3, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
        "num_attention_heads": 32,
    },
    "32B": {
        **QWEN3, "hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64,
        "num_attention_heads": 64,
    },
    "tiny": {
        **QWEN3, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 8, "head_dim": 16, "vocab_size": 300,
    },
}  # fmt: skip
SMALL = {
    "vocab_size": 301, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 1024,
    "head_dim": 32, "initializer_range": 0.1, "pad_token_id": 0, "num_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 64, "linear_num_key_heads": 4,
    "linear_num_value_heads": 8, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
}  # fmt: skip
FAMILIES = ("llama", "qwen3", "qwen3_moe", "qwen3_5_text")
EXACT = ("qwen3_5_text",)  # so small and random, 16 bits are too few for its proof
KINDS = {torch.float32: 1e-4, torch.bfloat16: 6e-2}  # how far logits may be off
BATCHES = (1, 16, 64)
CONTEXT = 1024
DRAWN = {"temperature": 0.8, "seed": 3}


def main() -> None:
    """Check and measure; ends with 1 if a value is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--models", default="8B,32B")
    parser.add_argument("--ways", default=",".join(WAYS), help="on one GPU, and split")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--skip-values", action="store_true")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.rank is None:
        sys.exit(start(asked.ranks, LIMIT_S))
    run(asked)
    os._exit(0)  # nothing is worth waiting for


def run(asked: argparse.Namespace) -> None:
    """Do what a rank does."""
    device = device_of(asked)
    is_right = True
    with torch.inference_mode():
        here, others = (grouped(asked, device, shares=shares) for shares in (True, False))
        name = "CPU" if asked.tiny else torch.cuda.get_device_name()
        how = "by NCCL" if here.group.sums is None else "in shared memory"
        here.say(f"# {asked.ranks} x {name}, torch {torch.__version__}; small sums go {how}")
        if not asked.skip_values:
            values(here, others)
            is_right = endures(here, others)
        ways = {"one": None, "nccl": others, "shared": here}
        for model in ["tiny"] if asked.tiny else asked.models.split(","):
            for way in asked.ways.split(","):
                measure(ways[way] or here, model, way=way)
        reductions(here, others)
    for each in (others, here):
        each.group.leave("m")
    if not is_right:
        leave("some sums were wrong")


# Values.


def values(here: Here, others: Here) -> None:
    """Compare a split model with a whole one, and one whose sums go another way."""
    for family in FAMILIES[::3] if here.is_tiny else FAMILIES:
        for dtype, limit in KINDS.items():
            if dtype != torch.float32 and (here.is_tiny or family in EXACT):
                continue
            off, same, total, both = compared(here, others, family, dtype)
            here.say(
                f"{family} {dtype}: logits off by {off:.1e}, {same} of {total} tokens are those of"
                f" one device, {both} those of sums by NCCL"
            )
            is_wrong = off > limit or (dtype == torch.float32 and same < total)
            if here.leads and is_wrong:
                leave("they are wrong")
            here.group.meet("")


def compared(
    here: Here, others: Here, family: str, dtype: torch.dtype
) -> tuple[float, int, int, int]:
    """
    Return how far logits are off, and how many tokens are the same; rank 0 does.

    Returns:
        The distance; how many tokens are those of one device, of how many; how many are those of
        the other group.
    """
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **SMALL)
    whole = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    share, shards = share_of(here, whole, config)
    other, by = share_of(others, whole, config)
    tried = probe.sequences(config.vocab_size, here.device)
    got = probe.truth(share, tried)
    wanted, alone = got, []
    if here.leads:
        wanted = probe.truth(whole.to(here.device), tried)
        alone = answers(here, model_of(here, weights_of(whole, config)))
    model = model_of(here, weights_of(share, config, shards))
    together = answers(here, model)
    theirs = answers(others, model_of(others, weights_of(other, config, by)))
    return (
        probe.distance(got, wanted),
        alike(together, alone),
        sum(map(len, alone)),
        alike(together, theirs),
    )


def share_of(here: Here, whole: Any, config: Any) -> tuple[Any, Shards]:
    """Return a rank's share of a model in a group, and how it was cut."""
    shards = Shards(config, here.group)
    share, _ = shards.model(shards.of(whole.state_dict()), dtype=whole.dtype)
    shards.join(share.eval().to(here.device))
    return share, shards


def alike(ours: list[list[int]], theirs: list[list[int]]) -> int:
    """Return how many tokens of answers are the same."""
    return sum(a == b for mine, other in zip(ours, theirs, strict=False)
               for a, b in zip(mine, other, strict=True))  # fmt: skip


def answers(here: Here, model: Model) -> list[list[int]]:
    """Return what is said to some prompts, greedily and not; nothing on other ranks."""
    made = torch.Generator().manual_seed(1)
    asked = [
        ask(number, torch.randint(3, 300, (length,), generator=made).tolist(), 12, **more)
        for number, (length, more) in enumerate(
            [(5, {}), (40, {}), (17, DRAWN), (90, {}), (1, {**DRAWN, "top_k": 9, "top_p": 0.9})]
        )
    ]
    said: list[list[int]] = [[] for _ in asked]
    for token in tokens_of(here, model, asked):
        said[int(token.request)].append(token.id)
    return said


def tokens_of(here: Here, model: Model, asked: list[Generate]) -> Iterator[Any]:
    """Yield the tokens of requests, while the other ranks do as they are told."""
    engine: Any = model.engine
    if isinstance(engine, Follower):
        while isinstance(told := plan.decode(here.heard.get()), plan.Plan):
            engine.follow(told)
        return
    for job in asked:
        engine.add(job)
    while engine.has_work:
        tokens, ended = engine.step()
        for event in ended:
            if not isinstance(event, Done):
                leave(f"a request ended with {event}")
        yield from tokens
    if model.group is not None:
        here.group.tell(plan.encode(plan.Over("m")))


def ask(number: int, prompt: list[int], count: int, **more: Any) -> Generate:
    """Return a request."""
    more = {"temperature": 0.0, **more}
    return Generate(id=str(number), model="m", prompt=prompt, max_tokens=count, **more)


def weights_of(module: Any, config: Any, shards: Shards | None = None) -> Weights:
    """Return a module as loaded weights."""
    nobody: Any = None  # talks to it
    return Weights(
        module=module.requires_grad_(requires_grad=False),
        context=min(config.max_position_embeddings, 4096),
        vocabulary=config.vocab_size,
        end_tokens=frozenset(),
        used_bytes=sum(p.nbytes for p in module.parameters()),
        text=nobody,
        shards=shards,
    )


def model_of(here: Here, weights: Weights) -> Model:
    """Return it ready to be asked."""
    room = (1 << 28) if here.is_tiny else (24 << 30)
    job = Load(
        model="m", path="", max_sequences=max(BATCHES), memory_bytes=weights.used_bytes + room
    )
    return build(job, weights, here.device)


# Speed.


def measure(here: Here, name: str, *, way: str) -> None:
    """Print a model's figures; of one that is not split rank 0 alone has some."""
    before = taken(here)
    if way != "one" or here.leads:
        figures(here, name, way=way)
    gc.collect()
    if here.device.type == "cuda":
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()  # noqa: SLF001 - as a worker does
        torch.cuda.empty_cache()
    left = taken(here) - before
    kept = here.group.meet(str(left))
    here.say(f"unloaded: {', '.join(f'{int(k) >> 20} MiB' for k in kept)} more than before")
    if max(map(int, kept)) > 64 << 20:
        here.say("that is wrong")


def taken(here: Here) -> int:
    """Return the bytes of this rank's tensors."""
    return torch.cuda.memory_allocated() if here.device.type == "cuda" else 0


def figures(here: Here, name: str, *, way: str) -> None:
    """Print decode steps and the time to a first token."""
    split = way != "one"
    config = transformers.AutoConfig.for_model("qwen3", **SHAPES[name])
    shards = Shards(config, here.group) if split else None
    dtype = torch.float32 if here.is_tiny else torch.bfloat16
    torch.manual_seed(here.group.rank)
    with here.device:
        module = transformers.AutoModelForCausalLM.from_config(
            config if shards is None else shards.config, dtype=dtype
        )
    if shards is not None:
        shards.join(module.eval())
    began = time.perf_counter()
    model = model_of(here, weights_of(module.eval(), config, shards))
    how = f"TP {here.group.ranks}, sums {way}" if split else "TP 1"
    here.say(f"\n## {name}, {how}: built in {time.perf_counter() - began:.1f} s; {model.body}")
    engine: Any = model.engine
    runner: Runner = engine._runner  # noqa: SLF001
    context, count = (64, 3) if here.is_tiny else (CONTEXT, 30)
    for batch in BATCHES:
        step_s = seconds(here.device, stepper(runner, batch, context), count)
        here.say(
            f"decode, {batch:3} x {context}: {1e3 * step_s:6.2f} ms, {batch / step_s:7.0f} tok/s"
        )
    if not here.is_tiny:
        step = stepper(runner, 1, context)
        here.say("\n".join(["where a step of 1 goes:", *longest(step)]))
    length = 256 if here.is_tiny else 2048
    best = min(first_token_s(here, model, length, number) for number in range(4))
    here.say(f"first token of {length}: {1e3 * best:.1f} ms")
    for batch in BATCHES[1:]:
        asked = [ask(n, [3 + n, *range(20, 147)], 8 if here.is_tiny else 64) for n in range(batch)]
        clock = time.perf_counter()
        tokens = sum(1 for _ in tokens_of(here, model, asked))
        rate = tokens / (time.perf_counter() - clock)
        here.say(f"128 in, {asked[0].max_tokens} out, {batch} at once: {rate:.0f} tok/s")


def first_token_s(here: Here, model: Model, length: int, number: int) -> float:
    """Return how long an idle engine takes to a first token, by the clock."""
    prompt = [3 + (7 * n + 11 * number) % 250 for n in range(length)]
    clock = time.perf_counter()
    for _ in tokens_of(here, model, [ask(0, prompt, 1)]):
        pass
    return time.perf_counter() - clock


if __name__ == "__main__":
    main()
