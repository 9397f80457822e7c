"""The gateway and the nodes: who can be reached, whose clock is off, what does not work there."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import msgspec

from cortex import __version__, tls
from cortex.cli.client import DEFAULT_URL, Gateway
from cortex.cli.doctor.asking import Answer, ask
from cortex.cli.doctor.findings import Finding
from cortex.cli.doctor.host import Host
from cortex.cli.doctor.ports import url_of, whoever
from cortex.config.schema import NodeEntry, UpstreamEntry
from cortex.errors import ConfigError
from cortex.fleet.node import Fleet, FleetNode, Health

OFF_S, BAD_S = 5.0, 120.0
AT_ONCE = 16
OK, UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 200, 401, 403, 404
FIX_CLOCK = "have both follow a time server: `timedatectl set-ntp true`, or chrony"


def gateway(host: Host, there: Gateway) -> Iterator[Finding]:
    """Look at the gateway, and through it at its nodes."""
    answer = ask(f"{there.url}/health", {})
    if not answer.status:
        yield _away(host, there, answer)
        return
    if not isinstance(answer.body, dict) or "nodes" not in answer.body:
        said = f"what answers at {there.url} is no gateway of ours (status {answer.status})"
        do = "name the gateway with --gateway or CORTEX_URL; without the /v1"
        yield Finding(check="gateway", state="fail", message=said, do=do)
        return
    state = answer.body.get("status", "?")
    said = f"{there.url} answers in {answer.took_s * 1000:.0f} ms and is {state}"
    works = state == "ok"
    do = "" if works else "see the nodes below, and `cortex status`"
    yield Finding(check="gateway", state="ok" if works else "warn", message=said, do=do)
    yield from clock("gateway", answer)
    yield from _inside(there)


def _away(host: Host, there: Gateway, answer: Answer) -> Finding:
    said = f"{there.url}: {answer.error}"
    if there.url != DEFAULT_URL:
        do = "is its host up, the port open, the address right? see --gateway and CORTEX_URL"
        return Finding(check="gateway", state="fail", message=said, do=do)
    if host.gateway_file is not None:
        do = "start it: cortex serve"
        return Finding(check="gateway", state="warn", message=said, do=do)
    if host.is_node:
        said = "none is named, and none is here"
        return Finding(check="gateway", state="skip", message=said)
    do = "name yours with --gateway or CORTEX_URL, or start one: cortex serve"
    return Finding(check="gateway", state="fail", message=said, do=do)


def clock(who: str, answer: Answer) -> Iterator[Finding]:
    """Compare a clock with ours."""
    ahead = answer.ahead_s
    if ahead is None or abs(ahead) < OFF_S:
        return
    way = "ahead of" if ahead > 0 else "behind"
    said = f"the clock of {who} is {abs(ahead):.0f} s {way} this host's"
    bad = abs(ahead) >= BAD_S
    yield Finding(check="clock", state="fail" if bad else "warn", message=said, do=FIX_CLOCK)


def _inside(there: Gateway) -> Iterator[Finding]:
    """Look at what a key opens."""
    keyless = {name: value for name, value in there.headers.items() if name != "Content-Type"}
    listed = ask(f"{there.url}/v1/models", keyless)
    if listed.status == UNAUTHORIZED:
        said = "the gateway wants a key" if "Authorization" not in keyless else "the key is unknown"
        do = "give one with --key or CORTEX_KEY; `cortex keys new NAME` makes one"
        yield Finding(check="key", state="fail", message=said, do=do)
        return
    rows = listed.body.get("data", []) if isinstance(listed.body, dict) else []
    if rows:
        yield Finding(
            check="models", state="ok", message=f"names that can be asked for: {len(rows)}"
        )
    else:
        do = "list some in models.toml, and `cortex reload`"
        yield Finding(check="models", state="warn", message="there is none to ask for", do=do)
    answer = ask(f"{there.url}/api/v1/fleet", keyless)
    if answer.status in (UNAUTHORIZED, FORBIDDEN):
        said = "only an admin's key shows them"
        yield Finding(check="nodes", state="skip", message=said)
        return
    try:
        fleet = msgspec.convert(answer.body, Fleet)
    except msgspec.ValidationError as error:
        said = f"{there.url}/api/v1/fleet answers something else than expected: {error}"
        do = "the gateway is of another version; update the older of the two"
        yield Finding(check="nodes", state="warn", message=said, do=do)
        return
    if fleet.version != __version__:
        said = f"the gateway is cortex {fleet.version}, this is {__version__}"
        yield Finding(
            check="versions", state="warn", message=said, do="update the older of the two"
        )
    if not fleet.nodes:
        do = "add [[neurons]] to cortex.toml, or start it with --neuron URL"
        yield Finding(check="nodes", state="fail", message="the gateway has none", do=do)
    for node in fleet.nodes:
        yield from _seen(node, fleet.version)


def _seen(node: FleetNode, version: str) -> Iterator[Finding]:
    """Say how a node is, as the gateway sees it."""
    check = f"node {node.name}"
    if not node.healthy:
        said = f"the gateway cannot use it: {node.error or 'it does not answer'}"
        do = f"on its host: is `cortex neuron` running, and {node.endpoint} its address?"
        yield Finding(check=check, state="fail", message=said, do=do)
        return
    if node.drained:
        do = f"cortex nodes resume {node.name}"
        yield Finding(check=check, state="warn", message="it is drained", do=do)
    yield from sick(check, node.health)
    for model in node.models:
        if not model.servable.ok:
            said = f"{model.id} cannot answer: {model.servable.reason}"
            do = f"cortex models unload {model.id} --node {node.name}; the node's log says why"
            yield Finding(check=check, state="warn", message=said, do=do)
    theirs = node.health.version if node.health else ""
    if theirs and theirs != version:
        said = f"it is cortex {theirs}, the gateway {version}"
        yield Finding(check=check, state="warn", message=said, do="update the older of the two")
    reason = node.discovery and node.discovery.cuda_unavailable_reason
    if node.discovery and reason and not _has_gpu(node.health) and not node.discovery.lacks_driver:
        said = f"no GPU is in use there: {reason}"
        do = "if it has one, run `cortex doctor` on that host"
        yield Finding(check=check, state="warn", message=said, do=do)
    else:
        how = ", on its CPU" if node.health and not _has_gpu(node.health) else ""
        yield Finding(check=check, state="ok", message=f"{node.endpoint} is in use{how}")


def _has_gpu(health: Health | None) -> bool:
    return health is not None and any(device.kind == "cuda" for device in health.devices)


def sick(check: str, health: Health | None) -> Iterator[Finding]:
    """Say which devices and first loads failed."""
    for device in health.devices if health else ():
        if device.state != "ok":
            said = f"device {device.index}, {device.name}, is {device.state}"
            do = "a worker is being restarted; if it does not come back, run this on that host"
            yield Finding(check=check, state="warn", message=said, do=do)
    for failed in health.activation.failed if health else ():
        said = f"{failed.model_id} of [[default_models]] did not load: {failed.error}"
        do = "correct its neuron.toml; `cortex pull MODEL` there says the same at once"
        yield Finding(check=check, state="fail", message=said, do=do)


def neuron(host: Host) -> Iterator[Finding]:
    """Ask the neuron of this host, if one runs, how it is."""
    if host.neuron is None or host.neuron.listen.port == 0:
        return
    address, tls_here = host.neuron.listen, host.neuron.tls is not None
    answer = ask(f"{url_of(address, tls=tls_here)}/health", {}, whoever() if tls_here else None)
    with suppress(msgspec.ValidationError):  # the ports say what else it is
        yield from sick("neuron", msgspec.convert(answer.body, Health))


def neurons(host: Host) -> Iterator[Finding]:
    """Ask the nodes of this host's cortex.toml themselves, all at once."""
    entries = host.gateway[0].nodes if host.gateway else ()
    if not entries:
        return
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for found in pool.map(_reach, entries):
            yield from found


def _reach(entry: NodeEntry) -> list[Finding]:
    """Ask one node."""
    check = f"reach {entry.name}"

    def fail(message: str, do: str) -> list[Finding]:
        return [Finding(check=check, state="fail", message=message, do=do)]

    context: ssl.SSLContext | None
    try:
        context = tls.toward(entry)  # type: ignore[arg-type] # one of its two kinds
    except ConfigError as error:
        return fail(error.message, error.hint or "correct it in cortex.toml")
    if isinstance(entry, UpstreamEntry):
        path, base = "/v1/models", entry.endpoint.rstrip("/").removesuffix("/v1")
    else:
        path, base = "/discovery", entry.endpoint.rstrip("/")
    headers = {"Authorization": f"Bearer {entry.token}"} if entry.token else {}
    answer = ask(base + path, headers, context)
    if not answer.status:
        do = "is it running, its port open to this host, the endpoint in cortex.toml right?"
        if "CERTIFICATE" in answer.error.upper():
            do = "its `ca` in cortex.toml has to be who signed it, and its name in the endpoint"
        return fail(f"{entry.endpoint}: {answer.error}", do)
    if answer.status in (UNAUTHORIZED, FORBIDDEN):
        do = "its `token` in cortex.toml has to be the one of its neuron.toml"
        return fail(f"{entry.endpoint} refuses our token", do)
    if answer.status != OK or not _is_ours(entry, answer.body):
        do = "its endpoint has to be a neuron's; other servers belong in [[upstreams]]"
        return fail(f"{entry.endpoint} is no neuron (status {answer.status})", do)
    said = f"{entry.endpoint} answers in {answer.took_s * 1000:.0f} ms"
    reached = Finding(check=check, state="ok", message=said)
    return [reached, *clock(entry.name, answer)]


def _is_ours(entry: NodeEntry, body: Any) -> bool:
    sign = "data" if isinstance(entry, UpstreamEntry) else "hostname"
    return isinstance(body, dict) and sign in body
