from __future__ import annotations

from collections.abc import Iterator

import pytest

from cortex.fleet.model import Progress
from tests.sources.hub import Hub


class Reports(list[Progress]):
    """A report that remembers; told to, it raises once so many bytes are done."""

    stop_at: int | None = None

    def __call__(self, progress: Progress) -> None:
        self.append(progress)
        if self.stop_at is not None and progress.done >= self.stop_at:
            raise Cancelled


class Cancelled(OSError):
    """An error of the kind sources themselves handle: it must come through all the same."""


@pytest.fixture
def reports() -> Reports:
    return Reports()


@pytest.fixture
def hub() -> Iterator[Hub]:
    import huggingface_hub

    server = Hub()
    yield server
    huggingface_hub.close_session()
    server.stop()
