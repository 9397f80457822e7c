"""
Decode steps as CUDA graphs, one for each of some batch sizes.

A step launches some hundred kernels, which the host takes longer to queue than a GPU to run; a
graph is queued at once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import torch

SIZES = (1, 2, 4, 8, *range(16, 65, 8), *range(80, 257, 16))
Decode = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Graphs:
    """Runs *decode* for up to *rows* rows; it reads and writes nothing but the device."""

    def __init__(self, decode: Decode, rows: int, device: torch.device) -> None:
        self._decode = decode
        self._sizes = sorted({min(size, rows) for size in SIZES} | {rows})
        self._which = torch.zeros(rows, dtype=torch.int64, device=device)
        self._found: dict[int, tuple[torch.cuda.CUDAGraph, tuple[torch.Tensor, torch.Tensor]]] = {}

    def enter(self, which: torch.Tensor) -> None:
        """Take in the rows that decode from now on: [rows] int64."""
        self._which[: len(which)] = which
        self._which[len(which) :] = 0

    def capture(self) -> None:
        """Make all graphs, the largest first, so that the others find its memory."""
        self._which.zero_()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        pool = None
        for size in reversed(self._sizes):
            which = self._which[:size]
            with torch.cuda.stream(stream):
                self._decode(which)  # compiles what is to be compiled
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph, pool=pool, stream=stream, capture_error_mode="thread_local"
            ):
                out = self._decode(which)
            pool = graph.pool()
            self._found[size] = graph, out
        torch.cuda.current_stream().wait_stream(stream)

    def run(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits and picked tokens of the first *count* rows that were entered."""
        if count > self._sizes[-1]:
            return self._decode(self._which[:count])
        size = self._sizes[bisect_left(self._sizes, count)]
        if (found := self._found.get(size)) is None:
            logits, picked = self._decode(self._which[:count])
            return logits, picked
        graph, (logits, picked) = found
        graph.replay()
        return logits[:count], picked[:count]
