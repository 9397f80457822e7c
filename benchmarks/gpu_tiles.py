"""
What tile each linear layer of a step of one token is best cut into, on an NVIDIA GPU.

    python benchmarks/gpu_tiles.py               all models, half an hour, most of it compiling
    python benchmarks/gpu_tiles.py --models 8B   less of it
    python benchmarks/gpu_tiles.py --tiny        of itself: on a CPU, a model of no size

Models have few layers, random weights and real shapes.  A layer's tiles are tried in whole steps,
since what is best by itself is not where kernels overlap, and the best stays for those after it.
What is found belongs in `cortex.neuron.engine.kernels.fused.tiles`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import transformers
from gpu_clock import seconds
from gpu_steps import stepper

from cortex.neuron.engine.cache import Cache
from cortex.neuron.engine.kernels import fused
from cortex.neuron.engine.kernels.fused import attention, dense
from cortex.neuron.engine.kernels.fused.tiles import Tile, tile
from cortex.neuron.engine.layers import Linear
from cortex.neuron.engine.modules import record
from cortex.neuron.engine.runner import Runner
from cortex.neuron.engine.stack import Stack

CONTEXT = 1024
STEPS = 12
SHAPES = {  # width, of the gate, heads, of keys, vocabulary, layers
    "0.6B": (1024, 3072, 16, 8, 151936, 28),
    "1.7B": (2048, 6144, 16, 8, 151936, 16),
    "4B": (2560, 9728, 32, 8, 151936, 8),
    "8B": (4096, 12288, 32, 8, 151936, 6),
    "14B": (5120, 17408, 40, 8, 151936, 4),
    "8B/2": (4096, 6144, 16, 4, 75968, 8),
    "32B/2": (5120, 12800, 32, 4, 75968, 4),
    "tiny": (32, 48, 2, 1, 64, 1),
}
ROWS, COLUMNS, WARPS = (2, 4, 8, 16), (256, 512, 1024, 2048, 4096), (2, 4, 8)
NUMBERS = range(16, 65)  # of the weight, that a thread has at a time
Key = tuple[int, int, bool, bool]  # rows, columns, whether tokens are normed, and gated
chosen: dict[Key, Tile] = {}


def main() -> None:
    """Try all tiles of all layers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--models", default=",".join(name for name in SHAPES if name != "tiny"))
    parser.add_argument("--quant", choices=("bf16", "fp8"), default="bf16")
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    device = torch.device("cpu" if asked.tiny else "cuda")
    if not asked.tiny:
        print(f"# {torch.cuda.get_device_name()}, torch {torch.__version__}")
    replaced: Any = dense
    replaced.tile = picked
    if asked.tiny:
        attention.PROGRAMS = 2  # there is none to spread them over
    with torch.inference_mode():
        for name in ["tiny"] if asked.tiny else asked.models.split(","):
            tried(name, device, is_quantised=asked.quant == "fp8", is_tiny=asked.tiny)


def picked(tokens: int, out: int, width: int, **how: bool) -> Tile:
    """Do as `tile`, where nothing else is chosen for one token."""
    key = out, width, how["has_norm"], how["is_gated"]
    return chosen[key] if tokens == 1 and key in chosen else tile(tokens, out, width, **how)


def tried(name: str, device: torch.device, *, is_quantised: bool, is_tiny: bool) -> None:
    """Print how long a step of a model takes by the tile of each of its layers."""
    *_, layers = SHAPES[name]
    body, step = model_of(name, device, is_quantised=is_quantised)
    count = 1 if is_tiny else STEPS
    chosen.clear()
    print(f"\n{name}: {1e6 * seconds(device, step(), count) / layers:.1f} us a layer", flush=True)
    for said, key in keys_of(body).items():
        found: list[tuple[float, Tile]] = []
        for candidate in [Tile(16, 256, 2)] if is_tiny else candidates(key):
            chosen[key] = candidate
            found.append((seconds(device, step(), count), candidate))
        found.sort()
        chosen[key] = found[0][1]
        line = " ".join(
            f"{t.rows}x{t.columns}x{t.warps}={1e6 * taken / layers:.2f}" for taken, t in found
        )
        print(f"{said} {key[0]}x{key[1]}: {line}", flush=True)


def candidates(key: Key) -> list[Tile]:
    """Return the tiles that are worth a try."""
    _, width, _, is_gated = key
    return [
        Tile(rows, columns, warps)
        for rows in ROWS
        for columns in COLUMNS
        for warps in WARPS
        if columns < 2 * width and rows * columns * (1 + is_gated) // (32 * warps) in NUMBERS
    ]


def keys_of(body: Any) -> dict[str, Key]:
    """Return the layers of a model, by what they are."""

    def key(layer: Linear, *, has_norm: bool, is_gated: bool = False) -> Key:
        out, width = layer.weight.shape
        return out // (1 + is_gated), width, has_norm, is_gated

    layer = body._layers[0]  # noqa: SLF001 - they are all the same
    return {
        "gate_up": key(layer.mlp.gate_up, has_norm=True, is_gated=True),
        "down": key(layer.mlp.down, has_norm=False),
        "qkv": key(layer.first.qkv, has_norm=True),
        "o": key(layer.first.out, has_norm=False),
        "head": key(body.head, has_norm=True),
    }


def model_of(
    name: str, device: torch.device, *, is_quantised: bool
) -> tuple[Any, Callable[[], Callable[[], object]]]:
    """Return a model, and what makes what runs a step of one token, which is captured anew."""
    width, inner, heads, kv_heads, vocabulary, layers = SHAPES[name]
    config = transformers.AutoConfig.for_model(
        "qwen3", hidden_size=width, intermediate_size=inner, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=vocabulary, num_hidden_layers=layers,
        head_dim=128 if device.type == "cuda" else 16, tie_word_embeddings=False,
        max_position_embeddings=40960,
    )  # fmt: skip
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    with torch.inference_mode(mode=False), device:
        module = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    module.eval().requires_grad_(requires_grad=False)
    blocks = CONTEXT // 16 + 2
    cache = Cache(record(module, torch.arange(3, device=device)), blocks, dtype, device)
    body = Stack(module, fused)
    if is_quantised:
        body.quantise(torch.float8_e4m3fn)

    def made() -> Callable[[], object]:
        runner = Runner(body, cache, rows=1, blocks=blocks, device=device)
        step = stepper(runner, 1, CONTEXT if device.type == "cuda" else 2)
        if device.type == "cuda":
            step()  # what is captured is what has run
        return step

    return body, made


if __name__ == "__main__":
    main()
