"""
How often a worker tells what its models do: now and then while it changes, then no more.

Nothing is asked of the device: what is told is what the host knows anyway.
"""

from __future__ import annotations

from typing import Protocol

from cortex.neuron.engine.jobs import Figures

INTERVAL_S = 0.5


class Metered(Protocol):
    """What answers a model's requests."""

    def figures(self, model: str, tok_s: float) -> Figures: ...


class Meter:
    """What was told of one model, and when."""

    def __init__(self, model: str, engine: Metered) -> None:
        self._model = model
        self._engine = engine
        self._tokens = 0  # since it told last
        self._told: Figures | None = None
        self._told_at = 0.0

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to tell until something happens."""
        return not self._tokens and self._told == self._engine.figures(self._model, 0.0)

    def count(self, tokens: int) -> None:
        """Take note that so many tokens were generated."""
        self._tokens += tokens

    def read(self, now: float) -> Figures | None:
        """Return what there is to tell, if it is time; the rate is that since it told last."""
        passed_s = now - self._told_at
        if passed_s < INTERVAL_S:
            return None
        figures = self._engine.figures(self._model, round(self._tokens / passed_s, 1))
        self._tokens, self._told_at = 0, now
        if figures == self._told:
            return None
        self._told = figures
        return figures
