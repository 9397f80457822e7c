"""
Compile the sum's kernel for a GPU, which takes none: `python -m tests.neuron.engine.compiling`.

It says what it reads and writes in words of eight bytes.
"""

from __future__ import annotations

import re

import triton.language as tl
from triton import compile as compiled
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cortex.neuron.engine.kernels.fused.allreduce import SPAN, WARPS, allreduce_kernel

TYPES = {
    "part": "*i32", "out": "*i32", "rooms": "*i64", "turns": "*i32", "factor": "fp32",
    "words": "i32",
}  # fmt: skip

for like in (tl.bfloat16, tl.float16, tl.float32):
    for is_added in (False, True):
        known = {"LIKE": like, "RANK": 1, "RANKS": 3, "ROOM": 8 * SPAN, "SPAN": SPAN,
                 "IS_HALF": like != tl.float32, "IS_ADDED": is_added}  # fmt: skip
        types = {**TYPES, **dict.fromkeys(known, "constexpr")}
        source = ASTSource(allreduce_kernel, types, known)
        made = compiled(source, GPUTarget("cuda", 90, 32), {"num_warps": WARPS})
        moves = set(re.findall(r"(?:ld|st)[a-z.]*global[a-z0-9.]*b64", made.asm["ptx"]))
        print(like, is_added, *sorted(moves))
