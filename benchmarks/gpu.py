"""
The engine on one NVIDIA GPU: values first, then speed beside what the memory allows.

    python benchmarks/gpu.py                 all of it, under ten minutes
    python benchmarks/gpu.py --models 0.6B   less of it
    python benchmarks/gpu.py --skip-values   speeds alone

Models have random weights of the real shapes.  A decode step reads all weights but the embedding,
the keys and values of all sequences, and their states, which it writes as well; the floor is how
long that takes at the bandwidth that is measured here.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import time
from typing import Any

import torch
import transformers
from engine import Continuous
from gpu_clock import seconds
from gpu_steps import stepper

from cortex.neuron.engine.jobs import Generate, Load
from cortex.neuron.engine.model import build
from cortex.neuron.engine.modules import recurrences
from cortex.neuron.engine.states import slot_bytes
from cortex.neuron.engine.weights import Weights

GPU = torch.device("cuda")
VALUES = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
VALUE_TESTS = tuple(
    f"tests/neuron/engine/test_{name}.py" for name in ("kernels", "batching", "hybrids")
)
SHAPES: dict[str, dict[str, Any]] = {
    "0.6B": {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "tie_word_embeddings": True,
    },
    "4B": {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
        "num_attention_heads": 32, "tie_word_embeddings": True,
    },
    "8B": {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "tie_word_embeddings": False,
    },
    "3.5-9B": {
        "family": "qwen3_5_text", "vocab_size": 248320, "num_key_value_heads": 4, "head_dim": 256,
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32,
        "num_attention_heads": 16, "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25,
        },
    },
}  # fmt: skip
QWEN3 = {
    "family": "qwen3",
    "vocab_size": 151936,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}
BATCHES = (1, 8, 64, 256)
PROMPTS = (128, 2048, 8192)
CONTEXT = 1024  # tokens in the cache of each sequence that decodes
DRAWN = {"temperature": 0.6, "top_k": 20, "top_p": 0.95}


def main() -> None:
    """Check and measure; ends with 1 if a value is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--models", default=",".join(SHAPES))
    parser.add_argument("--quants", default="bf16,fp8")
    parser.add_argument("--skip-values", action="store_true")
    parser.add_argument("--peers", action="store_true", help="transformers as well")
    asked = parser.parse_args()
    print(f"# {torch.cuda.get_device_name()}, torch {torch.__version__}, "
          f"transformers {transformers.__version__}")  # fmt: skip
    if not asked.skip_values:
        subprocess.run([*VALUES, *VALUE_TESTS], check=True, timeout=400)  # noqa: S603
    with torch.inference_mode():
        bandwidth = measured_bandwidth()
        print(f"memory is read at {bandwidth / 1e12:.2f} TB/s")
        for name in asked.models.split(","):
            for quant in asked.quants.split(","):
                measure(name, quant, bandwidth, with_peers=asked.peers)
                gc.collect()
                torch.cuda.empty_cache()


def measured_bandwidth() -> float:
    """Return how many bytes a second are read."""
    data = torch.empty(2 << 30, dtype=torch.uint8, device=GPU).view(torch.int64)
    return data.nbytes / seconds(GPU, data.sum, 10)


def made(name: str) -> Weights:
    """Return random weights of a shape."""
    sizes = {**QWEN3, **SHAPES[name]}
    config = transformers.AutoConfig.for_model(sizes.pop("family"), **sizes)
    torch.manual_seed(0)
    with torch.inference_mode(mode=False), GPU:  # peers read them outside of it
        module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    nobody: Any = None  # talks to it
    return Weights(
        module=module.eval().requires_grad_(requires_grad=False),
        context=10240,
        vocabulary=config.vocab_size,
        end_tokens=frozenset(),
        used_bytes=sum(p.nbytes for p in module.parameters()),
        text=nobody,
    )


def measure(name: str, quant: str, bandwidth: float, *, with_peers: bool) -> None:
    """Print a model's figures."""
    print(f"\n## Qwen{name if 'family' in SHAPES[name] else f'3-{name}'} {quant}", flush=True)
    weights = made(name)
    if with_peers and quant == "bf16":
        print(f"transformers generate, 1: {generate_speed(weights.module):.0f} tok/s", flush=True)
        print(f"transformers continuous, 64: {continuous_speed(weights.module)}", flush=True)
    began = time.perf_counter()
    job = Load(
        model=name, path="", max_sequences=256, quant=None if quant == "bf16" else quant,
        memory_bytes=weights.used_bytes + (50 << 30),
    )  # fmt: skip
    model = build(job, weights, GPU)
    engine: Any = model.engine
    print(f"built in {time.perf_counter() - began:.1f} s; {model.body}", flush=True)
    if model.body.startswith("plain"):
        return  # there is no step to measure
    read = engine._runner._body.step_bytes  # noqa: SLF001
    cache = engine._runner._cache  # noqa: SLF001
    token_bytes = 2 * sum(page.heads.elements for page in cache.pages.values())
    state_bytes = 2 * slot_bytes(recurrences(weights.module), torch.bfloat16)
    rows = len(engine._runner._which)  # noqa: SLF001
    for batch in (batch for batch in BATCHES if batch <= rows):
        step_s = seconds(GPU, stepper(engine._runner, batch, CONTEXT), 20)  # noqa: SLF001
        floor_s = (read + batch * (CONTEXT * token_bytes + state_bytes)) / bandwidth
        print(
            f"decode, {batch:3} x {CONTEXT}: {1e3 * step_s:6.2f} ms, {batch / step_s:7.0f} tok/s; "
            f"floor {1e3 * floor_s:5.2f} ms, {floor_s / step_s:4.0%} of bandwidth",
            flush=True,
        )
    firsts = ", ".join(f"{1e3 * first_token(engine, n):.1f} ms of {n}" for n in PROMPTS)
    print(f"first token: {firsts}", flush=True)
    for batch in (1, 64, 256):
        speed = throughput(engine, batch)
        drawn = throughput(engine, batch, **DRAWN)
        print(
            f"128 in, 128 out, {batch:3} at once: {speed:.0f} tok/s; drawn {drawn:.0f}", flush=True
        )


def ask(number: int, tokens: int, count: int, **more: Any) -> Generate:
    """Return a request with a prompt of its own."""
    prompt = torch.randint(0, 150_000, (tokens,)).tolist()
    more = {"temperature": 0.0, **more}
    return Generate(id=str(number), model="m", prompt=prompt, max_tokens=count, **more)


def first_token(engine: Any, tokens: int) -> float:
    """Return how long an idle engine takes to a first token, by the clock."""
    best = 1e9
    for number in range(4):
        engine.add(ask(number, tokens, 1))
        torch.cuda.synchronize()
        began = time.perf_counter()
        while engine.has_work:
            engine.step()
        best = min(best, time.perf_counter() - began)
    return best


def throughput(engine: Any, batch: int, **more: Any) -> float:
    """Return tokens a second, by the clock, of requests that come all at once."""
    for number in range(batch):
        engine.add(ask(number, 128, 128, **more))
    began = time.perf_counter()
    count = 0
    while engine.has_work:
        tokens, _ = engine.step()
        count += len(tokens)
    return count / (time.perf_counter() - began)


def generate_speed(module: Any) -> float:
    """Return tokens a second of transformers' own generation."""
    ids = torch.randint(0, 150_000, (1, 128), device=GPU)
    for count in (4, 64):
        began = time.perf_counter()
        module.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False)
        torch.cuda.synchronize()
    return 64 / (time.perf_counter() - began)


def continuous_speed(module: Any) -> str:
    """Return tokens a second of transformers' continuous batching, or why there are none."""
    own = module.config._attn_implementation  # noqa: SLF001 - it has no other name
    prompts = torch.randint(0, 150_000, (64, 128)).tolist()
    peer = Continuous(module, 2048)
    try:
        peer.answer(prompts[:2], 2)
        peer.answer(prompts, 128)
        return f"{64 * 128 / peer.answering_s:.0f} tok/s"
    except Exception as error:  # noqa: BLE001 - whatever it is: it is told
        return f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        module.set_attn_implementation(own)


if __name__ == "__main__":
    main()
