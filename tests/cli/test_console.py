"""How quantities read."""

from __future__ import annotations

import pytest

from cortex.cli.console import duration, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (60, "1m 0s"), (3599, "59m 59s"), (3600, "1h 0m"), (90000, "1d 1h")],
)
def test_a_duration_shows_its_two_largest_units(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (4.5 * 2**30, "4.5 GiB"), (2**41, "2.0 TiB")],
)
def test_a_size_uses_the_largest_unit_that_leaves_one(n_bytes, text):
    assert size(n_bytes) == text
