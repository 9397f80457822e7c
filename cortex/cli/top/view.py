"""
What the dashboard knows of the fleet: a snapshot, and what events changed since.

Synchronous and without a clock: time is an argument, in Unix seconds.  Figures of devices and
rates come with snapshots only; an answer that was under way while an event came may be older than
the event, and the next one puts that right.
"""

from __future__ import annotations

import attrs
import msgspec

from cortex.cli.top.journal import Journal
from cortex.cli.top.rates import Rates
from cortex.fleet.node import Fleet, FleetNode, LoadJob, NodeModel, RequestState


@attrs.frozen(kw_only=True)
class NodeNews:
    """``node``: how it is, or that it has left the fleet."""

    node: str
    healthy: bool = True
    drained: bool = False
    error: str | None = None
    gone: bool = False


@attrs.frozen(kw_only=True)
class ModelNews:
    """``model``: how it is on a node."""

    node: str
    model: NodeModel


@attrs.frozen(kw_only=True)
class LoadEnded:
    """``load_ended``."""

    model: str


@attrs.frozen(kw_only=True)
class Reloaded:
    """``reload``."""

    changed: tuple[dict[str, object], ...] = ()
    restart: tuple[dict[str, object], ...] = ()


@attrs.frozen(kw_only=True)
class Dropped:
    """``dropped``: we were too slow, and the stream ends."""

    reason: str = ""


NEWS = {
    "snapshot": Fleet,
    "node": NodeNews,
    "model": ModelNews,
    "load_progress": LoadJob,
    "load_ended": LoadEnded,
    "request": RequestState,
    "reload": Reloaded,
    "dropped": Dropped,
}


@attrs.define(kw_only=True, eq=False)
class View:
    """
    The one copy of it; only the app's own loop changes it.

    Attributes:
        fleet: None until the gateway was heard.
        problem: Why the gateway is not heard now; None while it is.
        heard_at: When it was heard last.
        retry_at: When it is tried again.
        now: What time it was when it was drawn last.
    """

    fleet: Fleet | None = None
    problem: str | None = "connecting"
    heard_at: float = 0.0
    retry_at: float = 0.0
    now: float = 0.0
    rates: Rates = attrs.field(factory=Rates)
    journal: Journal = attrs.field(factory=Journal)

    @property
    def stale(self) -> bool:
        """Whether what is shown may be over."""
        return self.fleet is not None and self.problem is not None

    def hear(self, event: str, data: bytes, now: float) -> None:
        """Take in an event; one we do not know changes nothing."""
        if (cls := NEWS.get(event)) is None:
            return
        self.heard_at = now
        try:
            news: object = msgspec.json.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            self.journal.note(now, "gateway", f"{event} not understood: {error}", bad=True)
            return
        if isinstance(news, Fleet):
            if self.problem is not None:
                self.journal.note(now, "gateway", f"connected, version {news.version}")
            self.problem = None
            self.refresh(news, now)
        else:
            self._take(news, now)

    def refresh(self, fleet: Fleet, now: float) -> None:
        """Take in a snapshot."""
        self.fleet, self.heard_at = fleet, now
        self.rates.take(fleet)

    def lose(self, why: str, now: float, retry_at: float) -> None:
        """Note that the gateway is not heard any more; it is tried again at *retry_at*."""
        if self.problem != why:
            self.journal.note(now, "gateway", why, bad=True)
        self.problem, self.retry_at = why, retry_at

    def _take(self, news: object, now: float) -> None:
        match news:
            case NodeNews():
                self._node(news, now)
            case ModelNews():
                self._model(news, now)
            case LoadJob():
                self._load(news, now)
            case LoadEnded():
                self.journal.note(now, "load", f"{news.model} ended")
                self._loads(news.model)
            case RequestState():
                self.journal.note(now, "request", over(news), bad=news.state == "error")
            case Reloaded():
                self.journal.note(now, "reload", reloaded(len(news.changed), len(news.restart)))
            case Dropped():
                self.journal.note(now, "gateway", f"dropped us: {news.reason}", bad=True)

    def _node(self, news: NodeNews, now: float) -> None:
        if self.fleet is None:
            return
        nodes = {node.name: node for node in self.fleet.nodes}
        if news.gone:
            nodes.pop(news.node, None)
        elif node := nodes.get(news.node):
            nodes[news.node] = attrs.evolve(
                node, healthy=news.healthy, drained=news.drained, error=news.error
            )
        else:
            nodes[news.node] = FleetNode(
                name=news.node,
                endpoint="",
                healthy=news.healthy,
                drained=news.drained,
                error=news.error,
            )
        self.fleet = attrs.evolve(self.fleet, nodes=tuple(nodes.values()))
        word = "left" if news.gone else "ok" if news.healthy else "unreachable"
        drained, error = (", drained" if news.drained else ""), news.error
        said = f"{news.node} {word}{drained}" + (f": {error}" if error else "")
        self.journal.note(now, "node", said, bad=not news.healthy)

    def _model(self, news: ModelNews, now: float) -> None:
        if self.fleet is None:
            return
        model = news.model
        for node in self.fleet.nodes:
            if node.name != news.node:
                continue
            models = {each.id: each for each in node.models}
            before = models.pop(model.id, None)
            if model.status != "unloaded":
                models[model.id] = model
            changed = attrs.evolve(node, models=tuple(models.values()))
            nodes = (changed if each is node else each for each in self.fleet.nodes)
            self.fleet = attrs.evolve(self.fleet, nodes=tuple(nodes))
            if before is None or (before.status, before.error) != (model.status, model.error):
                said = f"{model.id} on {news.node}: {model.status}"
                error = f": {model.error}" if model.error else ""
                self.journal.note(now, "model", said + error, bad=bool(model.error))

    def _load(self, job: LoadJob, now: float) -> None:
        if self.fleet is None:
            return
        before = next((each for each in self.fleet.loads if each.model == job.model), None)
        if before is None or (before.stage, before.node) != (job.stage, job.node):
            where = f" on {job.node}" if job.node else ""
            self.journal.note(now, "load", f"{job.model}{where}: {job.stage}")
        self._loads(job.model, job)

    def _loads(self, model: str, *jobs: LoadJob) -> None:
        if self.fleet is not None:
            others = [each for each in self.fleet.loads if each.model != model]
            self.fleet = attrs.evolve(self.fleet, loads=(*others, *jobs))


def over(request: RequestState) -> str:
    """Say how a request ended."""
    parts = [request.id, request.state, str(request.status), request.model]
    parts += [f"on {request.node}"] if request.node else []
    parts += [f"for {request.principal}"] if request.principal else []
    if request.duration_s is not None:
        parts.append(f"{request.completion_tokens} tokens in {request.duration_s:.2f} s")
    return " ".join(filter(None, parts))


def reloaded(changed: int, restart: int) -> str:
    """Say what a reload came to."""
    return f"{changed} changed, {restart} need a restart"
