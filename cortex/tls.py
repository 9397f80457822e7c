"""TLS: what a listener shows and wants, and what a gateway shows a neuron and wants of it."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

from cortex.config.schema import NeuronEntry, TlsSection, UpstreamEntry
from cortex.errors import ConfigError


def listener(section: TlsSection | None, where: str) -> ssl.SSLContext | None:
    """
    Return what a listener needs for TLS, or None for a plain one.

    Args:
        section: What the configuration says.
        where: The file and table, for errors: ``cortex.toml: gateway.tls.``.

    Raises:
        ConfigError: Names the key of the file that cannot be used.
    """
    if section is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _load_chain(context, section.cert, section.key, where, "cert")
    if section.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _load_ca(context, section.client_ca, f"{where}client_ca")
    return context


def renew(context: ssl.SSLContext | None, section: TlsSection | None, where: str) -> None:
    """
    Have a listener show its certificate as the file has it now, from the next connection on.

    Raises:
        ConfigError: As `listener` does; it then goes on with the one it has.
    """
    if context is not None and section is not None:
        listener(section, where)
        context.load_cert_chain(section.cert, section.key)


def toward(entry: NeuronEntry | UpstreamEntry) -> ssl.SSLContext | None:
    """
    Return what connections to a node need for TLS, or None if its endpoint is plain HTTP.

    Raises:
        ConfigError: Names the key of the file that cannot be used, or is of no use.
    """
    where = f"node {entry.name}: "
    if not entry.endpoint.startswith("https:"):
        for name, path in files(entry).items():
            if path is not None:
                raise ConfigError(f"{where}{name}: {entry.endpoint} is not https")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if entry.ca is None:
        context.load_default_certs()
    else:
        _load_ca(context, entry.ca, f"{where}ca")
    if entry.client_cert is not None:
        _load_chain(context, entry.client_cert, entry.client_key, where, "client_cert")
    elif entry.client_key is not None:
        raise ConfigError(f"{where}client_key: it is of no use without client_cert")
    return context


def files(entry: NeuronEntry | UpstreamEntry) -> dict[str, Path | None]:
    """Return the files TLS toward a node takes, by key."""
    return {"ca": entry.ca, "client_cert": entry.client_cert, "client_key": entry.client_key}


def _load_chain(
    context: ssl.SSLContext, cert: Path, key: Path | None, where: str, name: str
) -> None:
    _read(cert, f"{where}{name}")
    if key is not None:
        _read(key, f"{where}{name.replace('cert', 'key')}")
    _guarded(
        lambda: context.load_cert_chain(cert, key, password=lambda: _no_password(f"{where}{name}")),
        f"{where}{name}",
        "expected a certificate and its private key, both PEM",
    )


def _load_ca(context: ssl.SSLContext, path: Path, where: str) -> None:
    _read(path, where)
    _guarded(
        lambda: context.load_verify_locations(path), where, f"expected certificates, PEM, in {path}"
    )


def _read(path: Path, where: str) -> None:
    try:
        path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{where}: {path}: {error.strerror}") from None


def _guarded(load: Callable[[], None], where: str, expected: str) -> None:
    try:
        load()
    except ssl.SSLError as error:
        raise ConfigError(f"{where}: {expected}: {error.reason or error}") from None


def _no_password(where: str) -> str:
    raise ConfigError(f"{where}: the private key has a password, and nobody is there to type it")
