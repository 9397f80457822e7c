"""``cortex top --web``: a page, its dashboard, and who may not have one."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys

import aiohttp
import pytest

from cortex.cli.top.browser import is_ours
from tests.cli.conftest import REPOSITORY
from tests.cli.top.chromium import FOUND, chromium
from tests.e2e.programs import descendants, running, until

HERE = "http://127.0.0.1:8000"
WITHOUT = """
import sys
sys.modules["textual_serve"] = sys.modules["textual_serve.server"] = None
from cortex.__main__ import main
sys.exit(main(["top", "--web"]))
"""


async def seen(socket: aiohttp.ClientWebSocketResponse, wanted: str) -> None:
    """Read on until *wanted* was drawn."""
    drawn = ""
    async with asyncio.timeout(20):
        while wanted not in drawn:
            drawn += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", (await socket.receive_bytes()).decode())


@pytest.mark.timeout(90)
async def test_a_page_gets_a_dashboard_of_its_own_until_the_server_ends(telling, tmp_path):
    line = [sys.executable, "-m", "cortex", "top", "--web", "--port", "0"]
    env = {"PYTHONPATH": str(REPOSITORY), "CORTEX_URL": telling.url, "HOME": str(tmp_path)}
    with running(line, tmp_path / "log", **env) as program:
        url = await asyncio.to_thread(program.url)
        async with aiohttp.ClientSession(url) as session:
            async with session.get("/") as answer:
                page = await answer.text()
            fetched = re.findall(r"(?:href|src)=\"(static/[^\"]+)|url\(\"([^\"]+)", page)
            assert len(fetched) == 3
            for path in map("".join, fetched):
                async with session.get(f"/{path}") as answer:
                    assert answer.status == 200, path
            assert not re.search("https?://", page)

            with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
                await session.ws_connect("/ws", origin="http://elsewhere.example")
            async with session.ws_connect("/ws?width=100&height=30", origin=url) as socket:
                await seen(socket, "2 of 3 nodes healthy")
                await socket.send_json(["stdin", "2"])
                await seen(socket, "under way, and the last")
                await socket.send_json(["stdin", "q"])
                while (await socket.receive(20)).type != aiohttp.WSMsgType.CLOSE:
                    pass
            async with session.ws_connect("/ws", origin=url) as socket:
                await seen(socket, "2 of 3 nodes healthy")
                dashboards = descendants(program.process.pid)
                assert await asyncio.to_thread(program.stop) == 0
        assert dashboards
        await asyncio.to_thread(until, lambda: not any(map(alive, dashboards)))


@pytest.mark.timeout(180)
@pytest.mark.skipif(FOUND is None, reason="needs Chromium (apt install chromium-headless-shell)")
async def test_a_browser_shows_the_nodes_and_takes_keys(telling, tmp_path):
    line = [sys.executable, "-m", "cortex", "top", "--web", "--port", "0"]
    env = {"PYTHONPATH": str(REPOSITORY), "CORTEX_URL": telling.url, "HOME": str(tmp_path)}
    with running(line, tmp_path / "log", **env) as program:
        url = await asyncio.to_thread(program.url)
        async with chromium(tmp_path) as page:
            await page.open(url)
            await page.sees("2 of 3 nodes healthy", "beast", "benjy")
            fleet = await page.picture()
            await page.press("2")
            await page.sees("under way, and the last")
            await page.picture(unlike=fleet)
            await page.press("q")
            await page.appears("#ended")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("origin", "asked", "ours"),
    [
        (HERE, "127.0.0.1:8000", True),
        ("http://[::1]:8000", "[::1]:8000", True),
        ("http://localhost:9000", "localhost:9000", True),  # through ssh -L
        ("https://fleet.example", "fleet.example", True),  # what --host says
        ("http://elsewhere.example", "127.0.0.1:8000", False),
        ("http://elsewhere.example", "elsewhere.example", False),  # a name that was pointed at us
        ("http://127.0.0.1:9", "127.0.0.1:8000", False),
        ("null", "127.0.0.1:8000", False),
        ("", "127.0.0.1:8000", False),
        ("http://[", "127.0.0.1:8000", False),
    ],
)
def test_only_a_page_that_we_served_connects(origin, asked, ours):
    assert is_ours(origin, asked, "fleet.example") == ours


def test_without_the_extra_it_says_what_to_install():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=25,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("cortex top: --web needs textual-serve (pip install")


def test_an_address_that_is_taken_is_said(telling, command):
    port = str(telling.address.port)
    done = command("top", "--web", "--port", port)
    assert (done.returncode, f"127.0.0.1:{port}" in done.stderr) == (2, True)
