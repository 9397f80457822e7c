"""Loads ``default_models`` in order once the neuron listens."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from cortex.config.schema import DefaultModel
from cortex.errors import CortexError
from cortex.fleet.model import ModelSpec
from cortex.fleet.node import Activation, FailedActivation

log = logging.getLogger(__name__)


class Activator:
    """Warms the node up; `state` is what ``/health`` shows."""

    def __init__(self, models: Sequence[DefaultModel]) -> None:
        self._pending = deque(models)
        self._in_progress: str | None = None
        self._completed: list[str] = []
        self._failed: list[FailedActivation] = []

    async def run(self, load: Callable[[ModelSpec], Awaitable[object]]) -> None:
        """Load one model after another; a failure does not stop the others."""
        while self._pending:
            model = self._pending.popleft()
            self._in_progress = model.model_id
            spec = ModelSpec(
                id=model.model_id,
                harness=model.harness,
                source=model.source,
                quant=model.quant,
                context=model.context,
            )
            try:
                await load(spec)
            except CortexError as error:
                self._failed.append(FailedActivation(model_id=spec.id, error=str(error)))
            except Exception as error:
                log.exception("load of %s", spec.id)
                cause = f"{type(error).__name__}: {error}"
                self._failed.append(FailedActivation(model_id=spec.id, error=cause))
            else:
                self._completed.append(spec.id)
        self._in_progress = None

    @property
    def state(self) -> Activation:
        """How far it is."""
        warming = self._pending or self._in_progress
        return Activation(
            state="pre_warming" if warming else "ready",
            pending=tuple(model.model_id for model in self._pending),
            in_progress=self._in_progress,
            completed=tuple(self._completed),
            failed=tuple(self._failed),
        )
