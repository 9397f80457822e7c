"""What tests of clients share: a gateway and a neuron whose model says what `turns` has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cortex.fleet.model import ModelSpec
from tests.clients import fleet as fleets
from tests.clients.fleet import Fleet

MODELS = (ModelSpec(id="scripted"), ModelSpec(id="small", context=8))


@pytest.fixture(scope="module")
def servers() -> Iterator[Fleet]:
    with fleets.fleet("tests.clients.turns:SCRIPT", MODELS, {"nick": "scripted"}) as running:
        yield running


@pytest.fixture
def fleet(servers: Fleet) -> Fleet:
    """Return the servers of this module, as if nothing had been asked of them."""
    servers.harness.forget()
    return servers
