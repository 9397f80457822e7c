"""
Knows principals by the keys of ``[[auth.keys]]``.

Only digests are kept, and a key is looked up by its digest: how long that takes tells nothing about
the keys there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cortex import hookimpl
from cortex.api import Authenticator, Register
from cortex.fleet.principal import Key, Principal, digest


class Keys:
    """The keys of the configuration."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._by_digest = {key.sha256: key for key in keys}

    def identify(self, key: str, headers: Mapping[str, str]) -> Principal | None:  # noqa: ARG002
        return self._by_digest.get(digest(key)) if key else None


@hookimpl
def cortex_register_authenticators(register: Register[Authenticator]) -> None:
    register("keys", Keys, summary="keys of [[auth.keys]]")
