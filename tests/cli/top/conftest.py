"""A gateway that tells dashboards what a test wants."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cortex.cli.top import app
from tests.cli.top.watching import TellingGateway


@pytest.fixture
async def telling(fleet) -> AsyncIterator[TellingGateway]:
    """Return such a gateway, which tells of `fleet`."""
    gateway = TellingGateway(fleet)
    await gateway.start()
    yield gateway
    await gateway.stop()


@pytest.fixture(autouse=True)
def soon(monkeypatch) -> None:
    """Come back sooner, so that nobody waits for it."""
    monkeypatch.setattr(app, "PAUSES_S", (0.05,))
