"""What a step of decodes is made of, out of the rows it is of: one kernel instead of ten."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from cortex.neuron.engine.blocks import BLOCK_TOKENS
from cortex.neuron.engine.rows import Rows


@triton.jit(do_not_specialize=["rows"])
def advance_kernel(which, last, lengths, table, out, rows, stride, PAGE: tl.constexpr):
    """Take one row a token further."""
    number = tl.program_id(0)
    row = tl.load(which + number)
    position = tl.load(lengths + row)
    block = tl.load(table + row * stride + position // PAGE).to(tl.int64)
    out += number
    tl.store(out, tl.load(last + row))
    tl.store(out + rows, position)
    tl.store(out + 2 * rows, block * PAGE + position % PAGE)
    tl.store(out + 3 * rows, position + 1)
    tl.store(lengths + row, tl.where(row > 0, position + 1, 0))


def advance(rows: Rows, which: torch.Tensor) -> tuple[torch.Tensor, ...]:
    count = len(which)
    out = which.new_empty(4, count)
    advance_kernel[(count,)](
        which, rows.last, rows.lengths, rows.table, out, count, rows.table.stride(0),
        PAGE=BLOCK_TOKENS, num_warps=1,
    )  # fmt: skip
    return out.unbind()
