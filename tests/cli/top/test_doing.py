"""What keys do: each action is asked about first, made as one request, and its outcome told."""

from __future__ import annotations

import attrs
from textual.widgets import Input

from cortex.cli.top.asking import NO
from cortex.cli.top.screen import KeyLine
from cortex.cli.top.table import Table
from cortex.fleet.node import Fleet, RequestState
from tests.cli.top.watching import watching

WIDE = (120, 24)
QWEN = "/api/v1/models/Qwen%2FQwen3-8B"
ON_BEAST = {"node": "beast"}
PINNED = {"model_id": "Qwen/Qwen3-8B", "pinned_on": ["beast"]}


ACTIONS = [
    (
        "l",
        "Load Qwen/Qwen3-8B?",
        ("POST", f"{QWEN}/load", {}),
        {"status": "loaded", "model_id": "Qwen/Qwen3-8B", "node": "benjy"},
        "loaded: Qwen/Qwen3-8B on benjy",
    ),
    (
        "u",
        "Unload Qwen/Qwen3-8B? 3 requests are under way there.",
        ("POST", f"{QWEN}/unload", ON_BEAST),
        {"status": "unloaded", "model_id": "Qwen/Qwen3-8B", "node": "beast"},
        "unloaded: Qwen/Qwen3-8B on beast",
    ),
    ("p", "Pin Qwen", ("POST", f"{QWEN}/pin", ON_BEAST), PINNED, "Qwen3-8B: pinned on beast"),
    ("P", "Unpin Qwen", ("POST", f"{QWEN}/unpin", {}), PINNED, "Qwen3-8B: pinned on beast"),
    (
        "d",
        "Drain beast?",
        ("POST", "/api/v1/nodes/beast/drain", {}),
        {"node": "beast", "drained": True, "in_flight": 2},
        "drained: beast, 2 requests under way there",
    ),
    (
        "r",
        "Use beast again?",
        ("POST", "/api/v1/nodes/beast/resume", {}),
        {"node": "beast", "drained": False, "in_flight": 0},
        "in use: beast",
    ),
    (
        "R",
        "read its configuration again?",
        ("POST", "/api/v1/reload", {}),
        {"changed": [{"key": "a", "was": 1, "now": 2}], "restart": []},
        "reloaded: 1 changed, 0 need a restart",
    ),
]


async def test_a_key_asks_then_does_it_and_tells_what_came_of_it(telling):
    async with watching(telling.url, size=WIDE) as watcher:
        await watcher.sees("Qwen/Qwen3-8B beast loaded")
        for key, question, told, answer, said in ACTIONS:
            telling.answers[told[1]] = answer
            watcher.press(key)
            await watcher.sees(question, NO)
            assert told not in telling.told
            watcher.press("y")
            await watcher.sees(said, gone=NO)
            watcher.app.clear_notifications()

    assert telling.told == [told for _, _, told, _, _ in ACTIONS]


async def test_no_is_easy_and_another_choice_may_be_taken_and_refused(telling):
    async with watching(telling.url, size=WIDE) as watcher:
        await watcher.sees("Qwen/Qwen3-8B beast loaded")
        for answer in ("enter", "escape", "n"):
            watcher.press("u")
            await watcher.sees("Unload Qwen/Qwen3-8B?", NO)
            watcher.press(answer)
            await watcher.sees("MODEL NODE", gone=NO)
        assert telling.told == []

        watcher.press("u")
        await watcher.sees("and cut off its requests")
        watcher.press("down", "down", "enter")
        await watcher.sees("unload Qwen/Qwen3-8B from beast", gone=NO)
        watcher.press("3")
        await watcher.sees("done ! unload Qwen/Qwen3-8B from beast", "there is none")
    assert telling.told == [("POST", f"{QWEN}/unload", {"node": "beast", "force": True})]


async def test_keys_are_about_what_has_the_focus_and_say_what_they_cannot_do(telling):
    async with watching(telling.url, size=WIDE) as watcher:
        await watcher.sees("attic unreachable", "Qwen/Qwen3-8B beast loaded")
        watcher.press("end", "u")
        await watcher.sees("google/gemma-3-27b-it is on no node: l loads it")
        watcher.press("d")
        await watcher.sees("which node? Tab goes to the nodes")
        watcher.app.clear_notifications()

        watcher.press("tab")
        await watcher.sees("▸ beast")
        watcher.press("tab")
        await watcher.sees("▸ benjy")
        watcher.press("d")
        await watcher.sees("Drain benjy?", NO)
    assert telling.told == []


async def test_a_request_is_cancelled_and_one_that_is_over_is_not(telling):
    going = RequestState(id="a/b", state="answering", model="m", principal="zed", age_s=1)
    telling.requests = (going, attrs.evolve(going, id="over", state="ok"))
    telling.answers["/api/v1/requests/a%2Fb"] = {"id": "a/b", "cancelled": 1}
    async with watching(telling.url, size=WIDE) as watcher:
        await watcher.sees("beast ok")
        watcher.press("2")
        await watcher.sees("answering zed m")
        watcher.press("c")
        await watcher.sees("Cancel a/b, for m of zed? Its client gets an error.", NO)
        watcher.press("y")
        await watcher.sees("done: cancel a/b", gone=NO)
        watcher.press("down", "c")
        await watcher.sees("that request is over")
    assert telling.told == [("DELETE", "/api/v1/requests/a%2Fb", {})]


async def test_the_lines_of_the_log_are_filtered(telling):
    over = RequestState(id="r1", state="ok", status=200, model="m", node="beast", duration_s=1.0)
    async with watching(telling.url) as watcher:
        await watcher.sees("beast ok")
        watcher.press("3")
        telling.tell("request", over)
        telling.tell("node", {"node": "attic", "healthy": True})
        await watcher.sees("request r1 ok 200 m on beast 0 tokens in 1.00 s", "node attic ok")

        watcher.press("slash")
        await watcher.until(lambda _: isinstance(watcher.app.focused, Input), str)
        watcher.press(*"node atti")
        await watcher.sees("node attic ok", gone="r1")
        telling.tell("request", attrs.evolve(over, id="r2"))
        telling.tell("node", {"node": "attic", "healthy": False, "error": "it left"})
        await watcher.sees("node ! attic unreachable: it left", gone="r2")
        watcher.press(*["backspace"] * 9, "enter")
        await watcher.sees("request r1", "request r2", "node attic ok")


async def test_keys_are_listed_can_be_clicked_and_the_palette_knows_them(telling):
    async with watching(telling.url, size=(100, 40)) as watcher:
        await watcher.sees("beast ok")
        watcher.press("question_mark")
        await watcher.sees("P Unpin", "R Reload configuration", "ctrl+p Find any of these by name")
        watcher.press("escape")
        await watcher.sees("MODEL NODE", gone="P Unpin")
        watcher.press("ctrl+p")
        await watcher.sees("Search for commands")
        watcher.press(*"Reload conf")
        await watcher.sees("Reload configuration", "key R", gone="Search for commands")
        watcher.press("enter")
        await watcher.sees("read its configuration again?", NO)
        watcher.press("n")
        await watcher.sees("MODEL NODE", gone=NO)
        await watcher.click(KeyLine, columns=watcher.text.splitlines()[-1].index("Drain"))
        await watcher.sees("Drain beast?", NO)
    assert telling.told == []


async def test_the_cursor_goes_by_keys_and_clicks_and_stays_on_its_row(telling):
    names = [f"m{number:02}" for number in range(40)]
    telling.fleet = Fleet(version="0.1.0", uptime_s=1, catalogue=tuple(names))

    async with watching(telling.url) as watcher:

        async def at(name: str, shown: str) -> None:
            table = watcher.app.screen.query_one(Table)
            await watcher.until(lambda _: table.selected == f"{name}\n", lambda _: table.selected)
            await watcher.sees(f"{shown} on demand")

        await watcher.sees("m20 on demand")
        for key, name, shown in (
            ("down", "m01", "m00"),
            ("up", "m00", "m00"),
            ("up", "m00", "m00"),
            ("end", "m39", "m39"),
            ("down", "m39", "m39"),
            ("home", "m00", "m00"),
            ("pagedown", "m21", "m21"),
            ("pageup", "m00", "m00"),
        ):
            watcher.press(key)
            await at(name, shown)

        await watcher.click(Table, 3)
        await at("m02", "m02")
        telling.tell("snapshot", attrs.evolve(telling.fleet, catalogue=("first", *names)))
        await watcher.sees("first on demand")
        await at("m02", "m02")
        telling.tell("snapshot", attrs.evolve(telling.fleet, catalogue=("first", "second")))
        await at("second", "second")
        await watcher.click(Table, 2)
        await watcher.sees("second", "Esc Back")
