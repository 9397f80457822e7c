"""Whether what is configured to be listened on is free, ours already, or somebody else's."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from errno import EADDRINUSE

import attrs

from cortex.cli.doctor.asking import ask
from cortex.cli.doctor.findings import Finding
from cortex.cli.doctor.host import Host
from cortex.config.schema import Address
from cortex.connection import bind

OK = 200
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound


@attrs.frozen(kw_only=True)
class Listener:
    """
    One of our listeners.

    Attributes:
        sign: What is in ours' answer to `path`.
    """

    what: str
    key: str
    address: Address
    tls: bool
    path: str
    sign: str


def ports(host: Host) -> Iterator[Finding]:
    """Look at every listener of this host's files."""
    found = list(_listeners(host))
    if not found:
        yield Finding(check="ports", state="skip", message="nothing is to listen here")
    for listener in found:
        yield look(listener)


def _listeners(host: Host) -> Iterator[Listener]:
    if host.gateway is not None:
        section = host.gateway[0].gateway
        yield Listener(
            what="gateway",
            key="gateway.listen",
            address=section.listen,
            tls=section.tls is not None,
            path="/health",
            sign="nodes",
        )
        yield Listener(
            what="metrics server",
            key="gateway.metrics_listen",
            address=section.metrics_listen,
            tls=False,
            path="/healthz",
            sign="ok",
        )
    if host.neuron is not None:
        yield Listener(
            what="neuron",
            key="listen",
            address=host.neuron.listen,
            tls=host.neuron.tls is not None,
            path="/health",
            sign="devices",
        )


def look(listener: Listener) -> Finding:
    """Say who has a listener's address."""
    address, check = listener.address, f"port {listener.address.port}"
    if address.port == 0:
        return Finding(check=check, state="skip", message=f"{listener.key}: the system chooses one")
    try:
        bind(address)
    except OSError as error:
        if error.errno == EADDRINUSE:
            return _taken(listener, check)
        said = f"{address} cannot be listened on: {error.strerror or error}"
        do = f"correct {listener.key}; `ip address` lists the addresses of this host"
        return Finding(check=check, state="fail", message=said, do=do)
    said = f"{address} is free; no {listener.what} is running here"
    return Finding(check=check, state="ok", message=said)


def _taken(listener: Listener, check: str) -> Finding:
    address = listener.address
    url = url_of(address, tls=listener.tls) + listener.path
    answer = ask(url, {}, whoever() if listener.tls else None)
    if answer.status == OK and listener.sign in answer.body:
        said = f"{address} has our {listener.what}, which answers in {answer.took_s * 1000:.0f} ms"
        return Finding(check=check, state="ok", message=said)
    if listener.tls and not answer.status:
        said = f"{address} is taken by something that does not talk to us ({answer.error})"
        do = "it may be ours and want a client's certificate; `ss -ltnp` says who it is"
        return Finding(check=check, state="warn", message=said, do=do)
    said = f"{address} is taken by something that is no {listener.what} of ours"
    named = f"`ss -ltnp 'sport = :{address.port}'` names it"
    do = f"{named}; stop it, or choose another {listener.key}"
    return Finding(check=check, state="fail", message=said, do=do)


def url_of(address: Address, *, tls: bool) -> str:
    """Return what a listener of this host is reached by, from here."""
    host = "127.0.0.1" if address.host in EVERYWHERE else address.host
    return f"http{'s' * tls}://{Address(host, address.port)}"


def whoever() -> ssl.SSLContext:
    """Return what takes any certificate: who is there is asked, and nothing told."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
