"""The endpoint that is measured: which model it is asked for."""

from __future__ import annotations

from typing import Any

import msgspec

from cortex.cli.client import Gateway
from cortex.errors import CortexError, RemoteError
from cortex.registry import did_you_mean

NOT_FOUND = 404


class Listed(msgspec.Struct):
    """A row of ``/v1/models``, of our gateway or any other server."""

    id: str
    loaded: bool = False
    capabilities: Any = None

    @property
    def writes(self) -> bool:
        """Whether it answers with text; one that does not say so in our words is taken to."""
        said = self.capabilities
        return not isinstance(said, list) or not said or "text" in said


class Listing(msgspec.Struct):
    """``GET /v1/models``."""

    data: list[Listed]


def choose_model(gateway: Gateway, wanted: str | None) -> str:
    """
    Return the model to ask for: *wanted*, else the first loaded, else the first.

    Raises:
        CortexError: There is none, or none of that name.
    """
    try:
        rows = gateway.get_as(Listing, "/v1/models").data
    except RemoteError as error:
        if wanted is not None and error.status == NOT_FOUND:
            return wanted  # this server lists none; it says itself whether it has it
        raise
    if wanted is not None:
        known = {row.id: row for row in rows}
        if wanted not in known:
            hint = did_you_mean(wanted, known)
            raise CortexError(f"{gateway.url} has no model {wanted!r}", hint=hint)
        return wanted
    able = [row for row in rows if row.writes]
    if not able:
        raise CortexError(f"{gateway.url} lists no model that answers with text")
    return next((row for row in able if row.loaded), able[0]).id
