"""What the dashboard can do: the question that is asked first, and the request it makes."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote

import attrs

from cortex.cli.loads import LOAD_S
from cortex.cli.models import UNLOAD_S
from cortex.cli.top.replicas import Replica
from cortex.cli.top.view import reloaded
from cortex.fleet.node import Fleet, RequestState

ANSWER_S = 30.0


@attrs.frozen(kw_only=True)
class Action:
    """One request that changes something."""

    label: str
    method: str = "POST"
    path: str
    body: dict[str, object] = attrs.field(factory=dict)
    timeout_s: float = ANSWER_S


@attrs.frozen(kw_only=True)
class Question:
    """What is asked before anything is done; the first of *choices* is what ``y`` takes."""

    text: str
    choices: tuple[Action, ...]


def load(row: Replica, fleet: Fleet) -> Question:
    """Ask where to load a model."""
    fit = [node.name for node in fleet.nodes if node.healthy and not node.drained]
    places: list[tuple[str, dict[str, object]]] = [("where the gateway chooses", {})]
    places += [(f"on {name}", {"node": name}) for name in fit]
    choices = (_model(row, "load", where, body, LOAD_S) for where, body in places)
    return Question(text=f"Load {row.model}?", choices=tuple(choices))


def unload(row: Replica, fleet: Fleet) -> Question:
    """Ask where to unload a model, and whether to cut off its requests."""
    here = {"node": row.node}
    places: list[tuple[str, dict[str, object]]] = [
        (f"from {row.node}", {**here}),
        (f"from {row.node}, and cut off its requests", {**here, "force": True}),
    ]
    if len(_homes(row, fleet)) > 1:
        places.append(("from every node that has it", {}))
    choices = (_model(row, "unload", where, body, UNLOAD_S) for where, body in places)
    running = f"  {row.in_flight} requests are under way there." if row.in_flight else ""
    return Question(text=f"Unload {row.model}?{running}", choices=tuple(choices))


def pin(row: Replica, fleet: Fleet) -> Question:
    """Ask where to pin a model."""
    places: list[tuple[str, dict[str, object]]] = [(f"on {row.node}", {"node": row.node})]
    if len(_homes(row, fleet)) > 1:
        places.append(("on every node that has it", {}))
    choices = (_model(row, "pin", where, body) for where, body in places)
    text = f"Pin {row.model}?  It is never evicted there, and loaded nowhere else."
    return Question(text=text, choices=tuple(choices))


def unpin(row: Replica, fleet: Fleet) -> Question:
    """Ask where to unpin a model."""
    pinned = fleet.pins.get(row.model, ())
    places: list[tuple[str, dict[str, object]]] = []
    if row.node in pinned:
        places.append((f"from {row.node}", {"node": row.node}))
    places.append(("wherever it was pinned by hand", {}))
    choices = (_model(row, "unpin", where, body) for where, body in places)
    return Question(text=f"Unpin {row.model}?", choices=tuple(choices))


def drain(node: str) -> Question:
    """Ask whether to take a node out of use."""
    text = f"Drain {node}?  It gets nothing new; what runs there ends by itself."
    return Question(text=text, choices=(_node(node, "drain"),))


def resume(node: str) -> Question:
    """Ask whether to use a node again."""
    return Question(text=f"Use {node} again?", choices=(_node(node, "resume"),))


def cancel(request: RequestState) -> Question:
    """Ask whether to cancel a request."""
    path = f"/api/v1/requests/{quote(request.id, safe='')}"
    action = Action(label=f"cancel {request.id}", method="DELETE", path=path)
    who = f" of {request.principal}" if request.principal else ""
    text = f"Cancel {request.id}, for {request.model}{who}?  Its client gets an error."
    return Question(text=text, choices=(action,))


def reload() -> Question:
    """Ask whether to read the configuration again."""
    action = Action(label="reload cortex.toml and models.toml", path="/api/v1/reload")
    return Question(text="Have the gateway read its configuration again?", choices=(action,))


def done(action: Action, answer: dict[str, object]) -> str:
    """Say what came of it."""
    if "changed" in answer:
        changed, restart = (len(_list(answer.get(name))) for name in ("changed", "restart"))
        return f"reloaded: {reloaded(changed, restart)}"
    if "pinned_on" in answer:
        where = ", ".join(map(str, _list(answer["pinned_on"])))
        return f"{answer.get('model_id')}: pinned on {where or 'no node'}"
    if "drained" in answer:
        in_flight = f", {answer.get('in_flight')} requests under way there"
        word = "drained" if answer["drained"] else "in use"
        return f"{word}: {answer.get('node')}{in_flight if answer['drained'] else ''}"
    if "status" in answer:
        where = f" on {answer['node']}" if answer.get("node") else ""
        return f"{answer['status']}: {answer.get('model_id')}{where}"
    return f"done: {action.label}"


def _homes(row: Replica, fleet: Fleet) -> list[str]:
    return [node.name for node in fleet.nodes if any(m.id == row.model for m in node.models)]


def _model(
    row: Replica, verb: str, where: str, body: dict[str, object], timeout_s: float = ANSWER_S
) -> Action:
    path = f"/api/v1/models/{quote(row.model, safe='')}/{verb}"
    label = f"{verb} {row.model} {where}"
    return Action(label=label, path=path, body=body, timeout_s=timeout_s)


def _node(node: str, verb: str) -> Action:
    return Action(label=f"{verb} {node}", path=f"/api/v1/nodes/{quote(node, safe='')}/{verb}")


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, Iterable) else []
