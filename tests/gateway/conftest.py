"""Settings of these tests: the loop we serve on, and neurons asked more often."""

from __future__ import annotations

import pytest
import uvloop

from cortex.gateway import poller


def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def polled_often(monkeypatch) -> None:
    monkeypatch.setattr(poller, "POLL_S", 0.1)
    monkeypatch.setattr(poller, "POLL_WHILE_LOADING_S", 0.05)
