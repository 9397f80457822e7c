"""
Who asks, told before anything else of a request is looked at.

Every route wants a principal but those of `OPEN`, and those of the admin API want an admin.  What
goes by the route that was found cannot be led astray by how a path is written.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from aiohttp import web

from cortex.api import Authenticator
from cortex.config.schema import AuthSection
from cortex.errors import ModelNotAllowed, NotAuthenticated, PermissionDenied
from cortex.fleet.principal import ANONYMOUS, Principal
from cortex.plugins import Plugins

PRINCIPAL = web.RequestKey("principal", Principal)
OPEN = ("/", "/health", "/openapi.json")
KEYS = ("bearer", "x-api-key")  # where a key may be
ADMIN = "/api/v1/"


@attrs.frozen(kw_only=True)
class Auth:
    """What ``[auth]`` says; replaced as a whole when it says something else."""

    authenticators: tuple[Authenticator, ...]
    anonymous: Principal
    require: bool
    is_open: bool

    @classmethod
    def of(cls, section: AuthSection, plugins: Plugins, where: str) -> Auth:
        """
        Build the authenticators a configuration uses.

        Raises:
            ConfigError: One is unknown, or its options are.
        """
        for name in section.options:
            plugins.choose("authenticator", name, f"{where}: auth.options")
        return cls(
            authenticators=tuple(
                plugins.choose("authenticator", name, f"{where}: auth.use").build(
                    section.keys,
                    table=section.options.get(name),
                    where=f"{where}: auth.options.{name}",
                )
                for name in section.use
            ),
            anonymous=Principal(name=ANONYMOUS, **attrs.asdict(section.anonymous)),
            require=section.require,
            is_open=section.is_open,
        )

    def admit(self, route: str, headers: Mapping[str, str]) -> Principal:
        """
        Return who sends a request to *route* that may come in.

        Raises:
            NotAuthenticated: It needs a key, or another one.
            PermissionDenied: It is the admin API's, and the key is no admin's.
        """
        if route in OPEN:
            return self.anonymous
        principal = self.identify(headers)
        if route.startswith(ADMIN) and not (self.is_open or principal.admin):
            if principal is self.anonymous:
                raise NotAuthenticated("the admin API needs the key of an admin")
            raise PermissionDenied(f"{principal.name} is no admin")
        return principal

    def identify(self, headers: Mapping[str, str]) -> Principal:
        """
        Return who sends *headers*; anonymous is whoever nobody knows.

        Raises:
            NotAuthenticated: Nobody knows them, and a key is required.
        """
        keys = keys_in(headers)
        for key in keys or ("",):
            for authenticator in self.authenticators:
                if (principal := authenticator.identify(key, headers)) is not None:
                    return principal
        if not self.require:
            return self.anonymous
        if keys:
            raise NotAuthenticated("nobody is known by this key")
        raise NotAuthenticated(
            "a key is needed", hint="send it as Authorization: Bearer KEY, or as x-api-key"
        )


def route_of(request: web.Request) -> str:
    """Return the path of the route that was found, or nothing."""
    resource = request.match_info.route.resource
    return resource.canonical if resource else ""


def keys_in(headers: Mapping[str, str]) -> list[str]:
    """Return the keys a request carries; programs send one of their own beside the user's."""
    keys = []
    scheme, _, bearer = headers.get("Authorization", "").partition(" ")
    if bearer and scheme.lower() == "bearer":
        keys.append(bearer.strip())
    if key := headers.get("x-api-key", ""):
        keys.append(key)
    return keys


def check_model(principal: Principal, asked: str, model_id: str) -> None:
    """
    Check that a principal may use a model, by the name it asked for or by its id.

    Raises:
        ModelNotAllowed: It may not.
    """
    if not principal.allows(asked, model_id):
        raise ModelNotAllowed(
            f"{principal.name} may not use model {asked!r}",
            hint="/v1/models lists what it may use",
            param="model",
        )
