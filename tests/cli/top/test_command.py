"""``cortex top`` as a program, and against the gateway that is."""

from __future__ import annotations

import pytest

from cortex.testing import FakeNeuron
from tests.cli.top.watching import watching
from tests.gateway.running import running


def test_without_a_terminal_it_says_what_to_use(command, gateway):
    done = command("top")
    assert (done.returncode, done.stdout) == (1, "")
    assert "this needs a terminal (for a file or a pipe: cortex status)" in done.stderr


@pytest.mark.timeout(60)
def test_in_a_terminal_it_draws_and_leaves_on_a_key(nowhere, terminal):
    shown = terminal("top")
    shown.see("no gateway listens at")
    shown.type("q")
    assert shown.leave() == 0


async def test_a_model_is_loaded_and_a_node_drained_on_the_gateway_that_is():
    async with (
        FakeNeuron() as first,
        FakeNeuron() as second,
        running(first, second) as gateway,
        watching(gateway.url, size=(120, 40)) as watcher,
    ):
        await watcher.sees("2 of 2 nodes healthy", "node0 ok", "node1 ok", "m on demand")
        watcher.press("l")
        await watcher.sees("Load m?")
        watcher.press("y")
        await watcher.sees("loaded: m on node")
        where = "node0" if "m node0 loaded" in await watcher.sees("loaded 0") else "node1"
        watcher.press("enter")
        await watcher.sees(f"m goes to {where}", f"{where} serves")

        watcher.press("escape")
        await watcher.sees("MODEL NODE")
        watcher.press("d")
        await watcher.sees(f"Drain {where}?")
        watcher.press("y")
        await watcher.sees(f"{where} ok drained")
        await gateway.ask()
        watcher.press("3")
        await watcher.sees("request", "3 tokens in", f"done drained: {where}")
