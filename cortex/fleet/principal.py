"""Who asks: a name, what it may do, and the key that proves it."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Any

import attrs

EVERY_MODEL = ("*",)
ANONYMOUS = "anonymous"
MAX_BUDGET_DAYS = 366
MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000
_NAME = re.compile(r"[!-~]([ -~]{0,126}[!-~])?")  # it travels in a header
_DIGEST = re.compile(r"[0-9a-f]{64}")


def digest(secret: str) -> str:
    """Return what is kept of a key: a key is too random to be guessed, so nothing slower helps."""
    return sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _at_least(least: float, most: float = float("inf")) -> Callable[[Any, Any, Any], None]:
    def check(_: object, field: attrs.Attribute[Any], value: float | None) -> None:
        if value is not None and not least <= value <= most:
            bounds = f"{least:g} to {most:g}" if most < float("inf") else f"at least {least:g}"
            raise ValueError(f"{field.name}: expected {bounds}, got {value:g}")

    return check


@attrs.frozen(kw_only=True)
class Limits:
    """
    What somebody may do; where nothing is set there is no limit.

    Attributes:
        models: Names or ids of models it may use; ``*`` and ``?`` stand for anything, and a model
            may be used if either its name or its id fits.
        max_concurrency: Requests under way at once, waiting ones included.
        requests_per_minute: Requests a minute; as many may come at once.
        tokens_per_minute: Tokens of prompts and answers a minute; known at the end of a request, so
            one more begins as long as any are left.
        budget_tokens: Tokens in the last ``budget_days``.
        budget_days: Days in UTC, today included; 366 at most.
        priority: Higher goes first where requests wait for a model.
        weight: How large a share it gets of what is scarce, beside others that wait.
    """

    models: tuple[str, ...] = EVERY_MODEL
    max_concurrency: int | None = attrs.field(default=None, validator=_at_least(1))
    requests_per_minute: int | None = attrs.field(default=None, validator=_at_least(1))
    tokens_per_minute: int | None = attrs.field(default=None, validator=_at_least(1))
    budget_tokens: int | None = attrs.field(default=None, validator=_at_least(1))
    budget_days: int = attrs.field(default=30, validator=_at_least(1, MAX_BUDGET_DAYS))
    priority: int = 0
    weight: float = attrs.field(default=1.0, validator=_at_least(MIN_WEIGHT, MAX_WEIGHT))

    def allows(self, *names: str) -> bool:
        """Tell whether a model that has these names may be used."""
        if self.models == EVERY_MODEL:
            return True
        return any(fnmatchcase(name, pattern) for name in names for pattern in self.models)


@attrs.frozen(kw_only=True)
class Principal(Limits):
    """
    Somebody who asks.

    Attributes:
        name: Who it is, for limits, usage, logs and the neurons; unique, and not ``anonymous``.
        admin: Whether it may use the admin API.
    """

    name: str = attrs.field()
    admin: bool = False

    @name.validator
    def _check_name(self, _: object, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"name: expected 1 to 128 characters of ASCII, got {name!r}")


@attrs.frozen(kw_only=True)
class Key(Principal):
    """
    ``[[auth.keys]]``: a principal that is known by a secret.

    Attributes:
        sha256: The SHA-256 of its secret, in hexadecimal; the secret itself is nowhere.
    """

    sha256: str = attrs.field()

    @sha256.validator
    def _check_digest(self, _: object, value: str) -> None:
        if not _DIGEST.fullmatch(value):
            raise ValueError(
                f"sha256: expected 64 hexadecimal digits in lower case, as `cortex keys new"
                f" {self.name}` prints them"
            )
