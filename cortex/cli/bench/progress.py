"""The bar of each row while it is measured; without a terminal on stderr there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from cortex.cli.bench.answer import Answer
from cortex.cli.console import console

if TYPE_CHECKING:
    from cortex.cli.bench.asking import Limits, Load

EVERY_S = 0.25


@attrs.define
class Bar:
    """One row's."""

    progress: Progress
    task: TaskID
    is_timed: bool
    every_s: float = EVERY_S

    def show(self, answers: Sequence[Answer], passed_s: float) -> None:
        """Show how far it is."""
        if self.progress.disable:
            return
        over = sum(answer.end_s is not None for answer in answers)
        failed = sum(answer.error is not None for answer in answers)
        rate = sum(answer.pieces for answer in answers) / passed_s if passed_s else 0
        said = f"{over} answers, {rate:.0f} pieces/s" + (f", {failed} failed" if failed else "")
        self.progress.update(self.task, completed=passed_s if self.is_timed else over, said=said)


@contextmanager
def bars() -> Iterator[Callable[[Load, Limits], Bar]]:
    """Yield what starts a bar."""
    out = console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:

        def start(load: Load, limits: Limits) -> Bar:
            name = f"{load.rate:g}/s" if load.rate else f"{load.concurrency} at once"
            is_timed = limits.requests is None
            total = limits.seconds if is_timed else limits.requests
            return Bar(progress, progress.add_task(name, total=total, said=""), is_timed)

        yield start
