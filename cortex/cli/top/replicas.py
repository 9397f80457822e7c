"""The rows of the table of models: one for each model on each node, then what is on demand."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from cortex.cli.loads import under_way
from cortex.cli.top.rates import Rates
from cortex.fleet.node import Fleet, FleetNode, LoadJob, NodeModel


@attrs.frozen(kw_only=True)
class Replica:
    """
    A model on a node.

    Attributes:
        node: Empty if it is on none, or its load is not placed yet.
        load: How far its load is, while there is one.
        waiting: Requests that wait for the load, or on the node.
        tok_s: Tokens per second over the last minutes, the oldest first.
        trouble: Why it cannot answer.
    """

    model: str
    node: str
    state: str
    load: LoadJob | None = None
    in_flight: int | None = None
    waiting: int | None = None
    tok_s: tuple[float, ...] = ()
    pinned: bool = False
    trouble: str | None = None

    @property
    def key(self) -> str:
        """What tells it from all others."""
        return f"{self.model}\n{self.node}"


def replicas(fleet: Fleet, rates: Rates) -> list[Replica]:
    """Return the rows, by name; those on demand come last."""
    jobs = {(job.model, job.node or ""): job for job in under_way(fleet)}
    found: dict[str, Replica] = {}
    for node in fleet.nodes:
        for row in _of(node, fleet, jobs, rates):
            found[row.key] = row
    for (model, name), job in jobs.items():
        row = Replica(model=model, node=name, state="loading", load=job, waiting=job.waiting)
        found.setdefault(row.key, row)
    there = {row.model for row in found.values()}
    idle = (Replica(model=m, node="", state="on demand") for m in fleet.catalogue if m not in there)
    return [*sorted(found.values(), key=lambda row: (row.model, row.node)), *idle]


def _of(
    node: FleetNode, fleet: Fleet, jobs: dict[tuple[str, str], LoadJob], rates: Rates
) -> Iterator[Replica]:
    figures = {row.id: row for row in node.health.models} if node.health else {}
    for model in node.models:
        if model.status == "unloaded":
            continue
        now = figures.get(model.id) if node.healthy else None
        job = jobs.get((model.id, node.name))
        waiting = job.waiting if job else 0
        yield Replica(
            model=model.id,
            node=node.name,
            state=_state(node, model),
            load=job if model.status == "loading" else None,
            in_flight=now.in_flight if now else None,
            waiting=now.queue_depth + waiting if now else waiting if job else None,
            tok_s=rates.of(model.id, node.name) if node.healthy else (),
            pinned=node.name in fleet.pins.get(model.id, ()),
            trouble=model.error or (None if model.servable.ok else model.servable.reason),
        )


def _state(node: FleetNode, model: NodeModel) -> str:
    if not node.healthy:
        return "unreachable"
    if model.status == "loaded" and not model.servable.ok:
        return "unservable"
    return model.status
