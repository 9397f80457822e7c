"""
Steps as CUDA graphs.

A step launches some hundred kernels, which the host takes longer to queue than a GPU to run; a
graph of them is queued at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

import torch

from cortex.neuron.engine.poison import is_poison

Out = tuple[torch.Tensor, ...]
log = logging.getLogger(__name__)


class Graphs:
    """Graphs of what reads and writes nothing but the device; they share their memory."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._captures = True
        self._pool: Any = None
        self._found: dict[Hashable, tuple[torch.cuda.CUDAGraph, Out] | None] = {}

    def run(self, key: Hashable, step: Callable[[], Out]) -> Out:
        """
        Run a step; the second time of a *key* it is captured, and from then on replayed.

        The first time compiles what is to be compiled, which cannot be captured.  What a graph
        returns is overwritten by the next one.  Where a step cannot be captured, because the host
        has a say in it or memory runs out, no other is from then on.
        """
        found = self._found.get(key)
        if found is None and self._captures and key in self._found:
            try:
                found = self._found[key] = self._captured(step)
            except RuntimeError as error:
                if is_poison(error):
                    raise
                log.warning("steps are not captured, and take longer: %s", error)
                self._captures = False
        if found is None:
            self._found[key] = None
            return step()
        graph, out = found
        graph.replay()
        return out

    def _captured(self, step: Callable[[], Out]) -> tuple[torch.cuda.CUDAGraph, Out]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            out = step()
        self._pool = graph.pool()
        return graph, out
