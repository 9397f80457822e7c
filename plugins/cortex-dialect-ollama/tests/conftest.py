"""A gateway and a neuron with the plugin, whose model says what a script says."""

from __future__ import annotations

from collections.abc import Iterator

import ollama
import pytest

import cortex_dialect_ollama
from cortex.fleet.model import ModelSpec
from tests.clients import fleet as fleets
from tests.clients.fleet import Fleet
from tests.conftest import built, shared

__all__ = ["built", "shared"]

MODELS = (ModelSpec(id="scripted"), ModelSpec(id="cold", context=64), ModelSpec(id="org/colder"))


@pytest.fixture(scope="module")
def servers() -> Iterator[Fleet]:
    plugins = [cortex_dialect_ollama]
    with fleets.fleet("tests.clients.turns:SCRIPT", MODELS, plugins=plugins) as running:
        with ollama.Client(running.url, timeout=10) as client:
            client.chat("scripted", [])  # loads it
        yield running


@pytest.fixture
def fleet(servers: Fleet) -> Fleet:
    """Return the servers of this module, as if nothing had been asked of them."""
    servers.harness.forget()
    return servers


@pytest.fixture(params=["gateway", "neuron"])
def client(request, fleet) -> Iterator[ollama.Client]:
    """Return a client of the gateway, then one of the neuron."""
    url = fleet.url if request.param == "gateway" else fleet.neuron_url
    with ollama.Client(url, timeout=10) as client:
        yield client
