"""
Compile kernels for a GPU, which takes none: `python -m tests.neuron.engine.compiling`.

It says how the sum's reads and writes words; then of each kernel of a hybrid model's steps whether
it may begin before the one before it is done, whether it waits for that, and reads before it does.
"""

from __future__ import annotations

import re
from itertools import takewhile

import torch
import triton.language as tl
from triton import compile as compiled
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from cortex.neuron.engine.kernels.fused import overlap
from cortex.neuron.engine.kernels.fused.allreduce import SPAN, WARPS, allreduce_kernel
from tests.neuron.engine.engines import model_of
from tests.neuron.engine.test_variants import crowd, engine_over, named

GPU = GPUTarget("cuda", 90, 32)
WORDS = {
    "part": "*i32", "out": "*i32", "rooms": "*i64", "turns": "*i32", "factor": "fp32",
    "words": "i32",
}  # fmt: skip
TYPES = {
    torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64", torch.int32: "*i32",
    int: "i32", float: "fp32",
}  # fmt: skip
seen: dict[str, tuple[JITFunction, dict[str, object], dict[str, object]]] = {}


def sums():
    """Compile the sum's kernel, of three ranks."""
    for like in (tl.bfloat16, tl.float16, tl.float32):
        for is_added in (False, True):
            known = {"LIKE": like, "RANK": 1, "RANKS": 3, "ROOM": 8 * SPAN, "SPAN": SPAN,
                     "IS_HALF": like != tl.float32, "IS_ADDED": is_added}  # fmt: skip
            types = {**WORDS, **dict.fromkeys(known, "constexpr")}
            ptx = code(allreduce_kernel, types, known, {"num_warps": WARPS})
            moves = set(re.findall(r"(?:ld|st)[a-z.]*global[a-z0-9.]*b64", ptx))
            print("sum", like, is_added, *sorted(moves))


def steps():
    """Compile what steps run."""
    engine = engine_over(model_of("qwen3_5_text").to(torch.bfloat16))
    JITFunction.run = noted
    with torch.inference_mode():
        engine._runner.warm_up()
        crowd(engine, 70)
    for name, (kernel, values, options) in sorted(seen.items()):
        known = {p.name: values[p.name] for p in kernel.params if p.is_constexpr}
        types = {
            name: "constexpr" if name in known else TYPES[getattr(value, "dtype", type(value))]
            for name, value in values.items()
        }
        lines = code(kernel, types, known, options).splitlines()
        before = list(takewhile(lambda line: "griddepcontrol.wait" not in line, lines))
        found = {
            "overlaps": "launch_pdl" in options,
            "waits": len(before) < len(lines),
            "reads": any("ld.global" in line for line in before),
        }
        print(name, *(what for what, is_so in found.items() if is_so))


def noted(kernel, *args, grid, warmup, **options):
    """Note the last call of a kernel; of a layer's, the last for one token."""
    given = named(kernel, args, options)
    values = {name: given[name] for name in kernel.arg_names}
    more = {name: value for name, value in options.items() if name not in values}
    name = kernel.fn.__name__
    seen[f"{name}-{values.get('TOKENS', 1)}" if "linear" in name else name] = kernel, values, more


def code(kernel, types, known, options):
    """Return what a kernel is for a GPU."""
    return compiled(ASTSource(kernel, types, known), GPU, options).asm["ptx"]


if __name__ == "__main__":
    overlap.OVERLAPS = tl.constexpr(True)
    overlap.LAUNCH["launch_pdl"] = True
    sums()
    steps()
