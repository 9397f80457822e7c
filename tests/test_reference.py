"""The pages for who configures and extends say what the code says: ``docs/reference.py``."""

from __future__ import annotations

import os

import pytest

from docs.reference import DOCS, PAGES, configuration


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_the_code_says(name):
    """``CORTEX_RENEW_REFERENCE=1`` writes it anew."""
    path = DOCS / name
    renewed = PAGES[name](path.read_text("utf-8"))
    if os.environ.get("CORTEX_RENEW_REFERENCE"):
        path.write_text(renewed, "utf-8")
    assert path.read_text("utf-8") == renewed


def test_what_the_code_does_not_have_is_no_section_and_what_it_has_is_one():
    page = (DOCS / "configuration.md").read_text("utf-8")
    with pytest.raises(ValueError, match=r"\[queue\]"):
        configuration(page.replace("### `[queue]`", "### The queue"))
    with pytest.raises(ValueError, match=r"\[queues\]"):
        configuration(f"{page}\n### `[queues]`\n")


def test_a_table_and_how_its_keys_are_set_are_renewed_and_what_is_by_hand_stays():
    page = (DOCS / "configuration.md").read_text("utf-8")
    stale = page.replace("| `max_depth` | integer |", "| `max_dept` | text |")
    stale = stale.replace("CORTEX_QUEUE__MAX_DEPTH", "QUEUE_DEPTH")
    assert stale != page
    assert configuration(stale) == page
    assert configuration(f"{page}By hand.\n") == f"{page}By hand.\n"
