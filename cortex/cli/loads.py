"""Loads under way: what the fleet says of them, and following one to its end."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import attrs
from rich.progress import BarColumn, Progress, TextColumn

from cortex.cli.catalogue import models
from cortex.cli.client import Gateway, GatewayUnreachable
from cortex.cli.console import console, duration
from cortex.errors import CortexError, RemoteError
from cortex.fleet.node import Fleet, LoadJob

T = TypeVar("T")
LOAD_S = 6 * 3600.0
POLL_S = 0.5
POLL_TIMEOUT_S = 5.0
MAX_SILENT_POLLS = 6


def under_way(fleet: Fleet) -> list[LoadJob]:
    """Return the gateway's loads and those a node does by itself, each with the node's figures."""
    jobs = {(job.model, job.node): job for job in fleet.loads}
    loading = (
        (node.name, model)
        for node in fleet.nodes
        for model in node.models
        if node.healthy and model.status == "loading"
    )
    for name, model in loading:
        job = jobs.get((model.id, name), LoadJob(model=model.id, node=name, stage="loading"))
        jobs[model.id, name] = attrs.evolve(
            job,
            stage=model.stage or job.stage,
            progress=job.progress if model.progress is None else model.progress,
            eta_s=job.eta_s if model.eta_s is None else model.eta_s,
        )
    return list(jobs.values())


def stage(job: LoadJob) -> str:
    """Say what a load is doing now."""
    if job.evicting:
        return f"{job.stage}, evicting {', '.join(job.evicting)}"
    return job.stage


def left(job: LoadJob) -> str:
    """Say how long a load will take, if it is known."""
    return "" if job.eta_s is None else f"{duration(job.eta_s)} left"


def load(gateway: Gateway, model: str, node: str | None = None) -> dict[str, Any]:
    """Have *model* loaded, on *node* if one is named, and show how far it is."""
    body = {"node": node} if node else {}
    path = f"/api/v1/models/{quote(model, safe='')}/load"
    return follow(gateway, model, node, lambda: gateway.post_as(dict, path, body, timeout_s=LOAD_S))


def warm(gateway: Gateway, model: str) -> None:
    """Have *model* loaded if it is not; what stands in the way, the request will tell better."""
    with suppress(RemoteError):
        known = {name: entry for entry in models(gateway) for name in (entry.id, *entry.aliases)}
        if model in known and not known[model].loaded:
            load(gateway, model)


def follow(gateway: Gateway, model: str, node: str | None, work: Callable[[], T]) -> T:
    """
    Run *work*, a request that answers when the load of *model* is done, and show the load.

    Raises:
        CortexError: What *work* raised, or that the gateway went silent meanwhile.
    """
    task = _Task(work)
    silent_polls = 0
    with _display(model) as show:
        while not task.wait(POLL_S):
            try:
                fleet = gateway.get_as(Fleet, "/api/v1/fleet", timeout_s=POLL_TIMEOUT_S)
            except GatewayUnreachable:
                silent_polls += 1
                if silent_polls >= MAX_SILENT_POLLS:
                    raise
                continue
            except CortexError:
                continue  # a key that may load and not look: wait without a picture
            silent_polls = 0
            wanted = fleet.aliases.get(model, model)
            jobs = [job for job in under_way(fleet) if job.model == wanted]
            for job in [job for job in jobs if node in (None, job.node)][:1]:
                show(job)
    return task.result()


class _Task(Generic[T]):
    """A call in a thread that does not keep the process alive."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._running = threading.Lock()  # an Event's wait does not survive Ctrl-C at every point
        self._running.acquire()
        self._outcome: list[T] = []
        self._error: CortexError | None = None
        self._work = work
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._outcome.append(self._work())
        except CortexError as error:
            self._error = error
        finally:
            self._running.release()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end, *timeout_s* at most; True says, once, that it is there."""
        return self._running.acquire(timeout=timeout_s)

    def result(self) -> T:
        if self._error:
            raise self._error
        return self._outcome[0]


@contextmanager
def _display(model: str) -> Iterator[Callable[[LoadJob], None]]:
    """Yield what shows a load on stderr: a bar on a terminal, else a line a stage."""
    out = console(stderr=True)
    if not out.is_terminal:
        yield _StageLines(model)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[percent]:>4}"),
        TextColumn("{task.fields[left]}", markup=False),
    )
    with Progress(*columns, console=out, transient=True) as progress:
        bar = progress.add_task(model, total=None, percent="", left="")

        def show(job: LoadJob) -> None:
            at = f"{job.node}: {stage(job)}" if job.node else stage(job)
            known = job.progress is not None
            progress.update(
                bar,
                description=at,
                total=1.0 if known else None,
                completed=job.progress or 0.0,
                percent=f"{job.progress:.0%}" if known else "",
                left=left(job),
            )

        yield show


class _StageLines:
    def __init__(self, model: str) -> None:
        self._model = model
        self._last = ""

    def __call__(self, job: LoadJob) -> None:
        line = f"{self._model} on {job.node}: {stage(job)}" if job.node else stage(job)
        if line != self._last:
            self._last = line
            print(line, file=sys.stderr, flush=True)
