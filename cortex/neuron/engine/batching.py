"""One model that answers many requests at once: schedule, run, take in what came of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter

import torch

from cortex.errors import InvalidRequest
from cortex.neuron.engine.blocks import Blocks
from cortex.neuron.engine.drafts import Guesser
from cortex.neuron.engine.grammar import Grammar
from cortex.neuron.engine.jobs import Embed, End, Figures, Generate, Token
from cortex.neuron.engine.launched import Launched
from cortex.neuron.engine.poison import lost
from cortex.neuron.engine.runner import Runner
from cortex.neuron.engine.scheduler import Chunk, Scheduler
from cortex.neuron.engine.sequence import Sequence
from cortex.neuron.engine.snapshots import Snapshots, opening_of


class Batching:
    """
    Continuous batching over a paged cache.

    On a GPU a step is launched before the one before it is looked at, so that the device never
    waits for the host, unless there is a draft to try; on a CPU that would only be a step of delay.
    """

    def __init__(
        self,
        runner: Runner,
        blocks: Blocks,
        *,
        rows: int,
        budget_tokens: int,
        end_tokens: frozenset[int],
        runs_ahead: bool,
        snapshots: Snapshots | None = None,
        guesser: Callable[[], Guesser] | None = None,
        foreseen_tokens: int = 0,
    ) -> None:
        self._runner = runner
        self._end_tokens = end_tokens
        self._runs_ahead = runs_ahead
        self._guesser = guesser
        self._launched: deque[Launched] = deque()
        self._found: dict[str, Sequence] = {}
        self.scheduler = Scheduler(
            blocks,
            rows=rows,
            budget_tokens=budget_tokens,
            snapshots=snapshots,
            foreseen_tokens=foreseen_tokens,
        )

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._found or self._launched)

    @property
    def requests(self) -> list[str]:
        """The ids of the requests under way."""
        return list(self._found)

    def figures(self, model: str, tok_s: float) -> Figures:
        """Return what it does, as *model*, at this rate."""
        plan = self.scheduler
        return Figures(
            model=model,
            running=len(plan.running),
            waiting=len(plan.waiting),
            kv_used_pct=round(100 * plan.blocks.used / (plan.blocks.count - 1), 1),
            asked_tokens=plan.asked_tokens,
            hit_tokens=plan.hit_tokens,
            preemptions=plan.preemptions,
            drafted_tokens=plan.drafted_tokens,
            accepted_tokens=plan.accepted_tokens,
            tok_s=tok_s,
        )

    def add(self, job: Generate | Embed, grammar: Grammar | None = None) -> None:
        """Begin a request for text; its prompt and answer fit the cache."""
        assert isinstance(job, Generate)  # noqa: S101 - the worker has asked
        sequence = self._found[job.id] = Sequence(job, grammar, self._runner.places(job))
        if self.scheduler.snapshots is not None:
            sequence.opening = opening_of(job.prompt, self._end_tokens)
        if self._guesser is not None and not sequence.is_adjusted:
            sequence.guesser = self._guesser()
        self.scheduler.add(sequence)

    def cancel(self, request: str) -> End | None:
        """End a request now; returns its closing event if it was under way."""
        if (sequence := self._found.pop(request, None)) is None:
            return None
        self.scheduler.remove(sequence)
        sequence.reason = "cancelled"
        return sequence.done("cancelled")

    def step(self) -> tuple[list[Token], list[End]]:
        """Launch what is next, take in what is through; returns tokens, and ends of requests."""
        tokens: list[Token] = []
        ended: list[End] = []
        while self._guesser and self._launched and self.scheduler.is_drafting:
            self._take(self._launched.popleft(), tokens, ended)
        if chunks := self._able(self.scheduler.plan(perf_counter()), ended):
            self._launch(chunks, tokens, ended)
        if self._launched and (len(self._launched) > self._runs_ahead or not chunks):
            self._take(self._launched.popleft(), tokens, ended)
        return tokens, ended

    def _able(self, chunks: list[Chunk], ended: list[End]) -> list[Chunk]:
        """
        Ask the grammars what may come, and look at pictures.

        Returns:
            The chunks of those that have a way on.
        """
        able = []
        for chunk in chunks:
            sequence = chunk.sequence
            try:
                if chunk.samples and sequence.grammar is not None:
                    sequence.allowed = sequence.grammar.allowed()
                self._runner.look(chunk)
            except Exception as error:  # noqa: BLE001 - it is raised again if it is not its alone
                self._end(sequence, lost(sequence.id, error), ended)
            else:
                able.append(chunk)
        return able

    def _launch(self, chunks: list[Chunk], tokens: list[Token], ended: list[End]) -> None:
        plan = self.scheduler
        self._runner.change(plan.moved, plan.entered, plan.copies)
        try:
            for chunk in chunks:
                chunk.sequence.starts()
            launched = self._runner.launch(chunks)
        except torch.OutOfMemoryError as error:  # who asks for most goes, the others try again
            while self._launched:  # the host has to know what they go on from
                self._take(self._launched.popleft(), tokens, ended)
            most = max(chunks, key=lambda chunk: chunk.count).sequence
            if most.reason is None:
                self._end(most, lost(most.id, error), ended)
            self.scheduler.broken(chunks)
        except Exception as error:  # noqa: BLE001 - it is raised again if it is not theirs alone
            for chunk in chunks:
                self._end(chunk.sequence, lost(chunk.sequence.id, error), ended)
        else:
            self.scheduler.launched(chunks)
            self._launched.append(launched)

    def _take(self, launched: Launched, tokens: list[Token], ended: list[End]) -> None:
        going: dict[str, Sequence] = {}
        for number, token in enumerate(launched.tokens()):
            pick = launched.picks[number]
            if not pick.is_good:
                continue
            sequence = going[pick.sequence.id] = pick.sequence
            sequence.in_flight -= pick.follows is None
            try:
                is_said = sequence.take(token, self._end_tokens)
            except InvalidRequest as error:  # its grammar has no way on
                self._end(sequence, lost(sequence.id, error), ended)
                continue
            if is_said:
                tokens.append(self._token(sequence, launched, number, token))
            if sequence.reason is not None:
                self._end(sequence, sequence.done(sequence.reason), ended)
        for chunk, epoch in launched.drafted:
            if chunk.sequence.id in going and chunk.sequence.epoch == epoch:
                self.scheduler.settle(chunk)
        guessed = launched.guessed()
        for name, sequence in going.items():
            if sequence.reason is None:
                self.scheduler.keep(sequence)
                sequence.guess(guessed.get(name, ()))

    def _token(self, sequence: Sequence, launched: Launched, number: int, token: int) -> Token:
        if sequence.job.logprobs is None:
            return Token(sequence.id, token)
        return Token(sequence.id, token, *launched.logprobs(number, sequence.job.logprobs))

    def _end(self, sequence: Sequence, event: End, ended: list[End]) -> None:
        sequence.reason = sequence.reason or "lost"
        self.scheduler.keep(sequence)
        self.scheduler.remove(sequence)
        self._found.pop(sequence.id, None)
        ended.append(event)
