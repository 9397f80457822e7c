"""Requests that each run by themselves, a step of each in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cortex.neuron.engine.grammar import Grammar
from cortex.neuron.engine.jobs import Embed, End, Figures, Generate, Token
from cortex.neuron.engine.poison import lost


class Request(Protocol):
    """One of them; *reason* is why it ended, if it did."""

    @property
    def reason(self) -> str | None: ...
    def step(self) -> Token | None: ...
    def done(self, reason: str) -> End: ...


class Turns:
    """Makes a request of a job with *begin*, and steps through all there are."""

    def __init__(self, begin: Callable[[Generate | Embed, Grammar | None], Request]) -> None:
        self._begin = begin
        self._running: dict[str, Request] = {}

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._running)

    @property
    def requests(self) -> list[str]:
        """The ids of the requests under way."""
        return list(self._running)

    def figures(self, model: str, tok_s: float) -> Figures:
        """Return what it does, as *model*, at this rate."""
        return Figures(model=model, running=len(self._running), tok_s=tok_s)

    def add(self, job: Generate | Embed, grammar: Grammar | None = None) -> None:
        """Begin a request."""
        self._running[job.id] = self._begin(job, grammar)

    def cancel(self, request: str) -> End | None:
        """End a request now; returns its closing event if it was under way."""
        found = self._running.pop(request, None)
        return found.done("cancelled") if found is not None else None

    def step(self) -> tuple[list[Token], list[End]]:
        """Advance every request by one step; returns tokens, and the ends of requests."""
        tokens: list[Token] = []
        ended: list[End] = []
        for name, request in list(self._running.items()):
            try:
                token = request.step()
            except Exception as error:  # noqa: BLE001 - it is raised again if it is not its alone
                ended.append(lost(name, error))
                del self._running[name]
                continue
            if token is not None:
                tokens.append(token)
            if request.reason is not None:
                ended.append(request.done(request.reason))
                del self._running[name]
        return tokens, ended
