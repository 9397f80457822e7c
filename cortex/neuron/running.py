"""A model of the built-in engine while it is loaded, as the neuron sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from functools import partial

import attrs

from cortex.api import Count, Places
from cortex.chat.request import ChatRequest
from cortex.errors import RepoFetchFailed
from cortex.fleet.model import ModelStats
from cortex.neuron.engine import jobs
from cortex.neuron.images.gallery import Gallery, Shown
from cortex.neuron.text.side import NOTHING, Prompt, Text
from cortex.neuron.workers import DeviceWorker

READERS = 4  # threads that read prompts: with more of them all else waits for its turn


@attrs.define(kw_only=True)
class Running:
    """
    A loaded model: where it runs, its text side, and what it is doing.

    Attributes:
        worker: Who is asked: rank 0's, if it is a group that it runs on.
        body: How the engine runs it, for people.
        width: Components of the vectors it makes; None if it makes text.
        places: On the device.
        gallery: Where images of requests are read.
        readers: Of requests.
    """

    worker: DeviceWorker
    text: Text
    context: int
    body: str
    defaults: Mapping[str, float]
    places: Places
    gallery: Gallery
    width: int | None = None
    tok_s_prefill: float = 0.0
    tok_s_decode: float = 0.0
    readers: Executor = attrs.field(factory=partial(ThreadPoolExecutor, READERS, "reader"))

    async def read(self, request: ChatRequest, shown: Shown) -> tuple[Prompt, str | None]:
        """Return the prompt of a request, and the grammar that holds its answer to a form."""
        loop, seen = asyncio.get_running_loop(), shown.pictures
        return await loop.run_in_executor(self.readers, self.text.read, request, seen)

    def stats(self, model: str, max_in_flight: int) -> ModelStats:
        """Return what it is doing, as *model*; asks nobody."""
        stats = ModelStats(
            in_flight=self.places.taken,
            queue_depth=self.places.waiting,
            max_in_flight=max_in_flight,
            tok_s_prefill=round(self.tok_s_prefill, 1),
            tok_s_decode=round(self.tok_s_decode, 1),
            tokens_total=self.worker.tokens_total[model],
            body=self.body,
        )
        if (told := self.worker.figures.get(model)) is None:
            return stats
        stats = attrs.evolve(stats, running=told.running, waiting=told.waiting, tok_s=told.tok_s)
        if told.kv_used_pct is None:
            return stats
        hit = 100 * told.hit_tokens / told.asked_tokens if told.asked_tokens else 0.0
        return attrs.evolve(
            stats,
            kv_used_pct=told.kv_used_pct,
            prefix_hit_pct=round(hit, 1),
            prompt_tokens_total=told.asked_tokens,
            cached_tokens_total=told.hit_tokens,
            preemptions_total=told.preemptions,
            drafted_tokens_total=told.drafted_tokens,
            accepted_tokens_total=told.accepted_tokens,
        )

    def count(self, prompt_tokens: int, done: jobs.Done) -> None:
        """Take a finished request into the smoothed rates."""
        if done.prefill_ms:
            self.tok_s_prefill = smooth(self.tok_s_prefill, 1e3 * prompt_tokens / done.prefill_ms)
        if done.decode_ms and done.completion_tokens > 1:
            rate = 1e3 * (done.completion_tokens - 1) / done.decode_ms
            self.tok_s_decode = smooth(self.tok_s_decode, rate)


def text_of(files: jobs.TextFiles, path: str) -> Text:
    """
    Return the text side of a checkpoint.

    Raises:
        RepoFetchFailed: Its tokenizer or chat template is of no use.
    """
    try:
        return Text(files)
    except BaseException as error:  # noqa: BLE001 - of files of others; panics are no Exceptions
        said = f"{path}: its tokenizer or chat template is of no use: {error}"
        raise RepoFetchFailed(said) from None


async def look(text: Text, gallery: Gallery, request: ChatRequest) -> Shown:
    """Return what a model sees of the images of a request, to be closed."""
    if text.sight is None:
        return Shown(NOTHING)
    return await gallery.show(request.messages, text.sight)


def counter(text: Text, gallery: Gallery) -> Count:
    """Return what counts the tokens of a prompt as `Running.read` does."""

    async def count(request: ChatRequest) -> int:
        with closing(await look(text, gallery, request)) as shown:
            return len((await asyncio.to_thread(text.prompt, request, shown.pictures)).ids)

    return count


def smooth(old: float, new: float) -> float:
    """Return the running mean of a rate, in tokens per second."""
    return new if not old else 0.8 * old + 0.2 * new
