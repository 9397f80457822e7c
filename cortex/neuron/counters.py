"""
Counts tokens for models that are not loaded: their text side is read, and a few are kept.

Reading is single-flight, and goes on if the caller leaves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import attrs

from cortex.api import Count, Harness, Source
from cortex.errors import CortexError, LoadFailed
from cortex.fleet.model import ModelSpec
from cortex.neuron.fetching import fetch

KEPT = 8
Spawn = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]
log = logging.getLogger(__name__)


@attrs.define(kw_only=True)
class Counter:
    """One model: what was asked for and what came of it."""

    spec: ModelSpec
    job: asyncio.Task[None] | None = None
    count: Count | None = None
    error: CortexError | None = None


class Counters:
    """The last `KEPT` models that were prepared; event loop only."""

    def __init__(self, spawn: Spawn, source_of: Callable[[ModelSpec], Source]) -> None:
        self._spawn = spawn
        self._source_of = source_of
        self._counters: dict[str, Counter] = {}  # the one used last is the last

    def get(self, model_id: str) -> Count | None:
        """Return what counts a model's tokens, if it was prepared."""
        if (counter := self._counters.pop(model_id, None)) is None:
            return None
        self._counters[model_id] = counter
        return counter.count

    async def prepare(self, spec: ModelSpec, harness: Harness) -> None:
        """
        Read the text side of a model, unless that is done or under way.

        Raises:
            CortexError: Why it cannot be read.
        """
        counter = self._counters.get(spec.id)
        if counter is None or counter.spec != spec or counter.error is not None:
            counter = self._counters[spec.id] = Counter(spec=spec)
            counter.job = self._spawn(self._prepare(counter, harness), f"tokenizer of {spec.id}")
            for oldest in list(self._counters)[:-KEPT]:
                del self._counters[oldest]
        if counter.job is not None:
            await asyncio.wait({counter.job})
        if counter.error is not None:
            raise counter.error.with_traceback(None)  # it would hold every request

    async def _prepare(self, counter: Counter, harness: Harness) -> None:
        spec = counter.spec
        try:
            checkpoint = None
            if harness.needs_weights:
                checkpoint = await fetch(self._source_of, spec, lambda _: None, text_only=True)
            counter.count = await harness.counter(spec, checkpoint)
        except CortexError as error:
            counter.error = error
        except asyncio.CancelledError:
            counter.error = LoadFailed(f"the tokenizer of {spec.id!r} was not read to its end")
            raise
        except Exception as error:
            log.exception("tokenizer of %s", spec.id)
            counter.error = LoadFailed(f"{type(error).__name__}: {error}")
        finally:
            counter.job = None
