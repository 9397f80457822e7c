"""What a service manager hears, over a real datagram socket."""

from __future__ import annotations

import asyncio
import os
import socket
from time import clock_gettime_ns

import pytest

from cortex.systemd import Service
from tests.gateway.test_command import config
from tests.neuron.serving import program


@pytest.fixture
def manager(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(10)
        yield listener


def heard(manager: socket.socket) -> dict[str, str]:
    return dict(line.split("=", 1) for line in manager.recv(4096).decode().split("\n"))


async def next_said(manager: socket.socket) -> dict[str, str]:
    return await asyncio.to_thread(heard, manager)


def environment(manager: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.getsockname(), **more}


def test_ready_is_said_with_a_status_in_one_line(manager):
    Service(environment(manager)).ready("serving\non x")

    assert heard(manager) == {"READY": "1", "STATUS": "serving on x"}


def test_a_reload_is_said_with_the_time_the_manager_compares(manager):
    before = clock_gettime_ns(1) // 1000
    Service(environment(manager)).reloading()

    said = heard(manager)

    assert said["RELOADING"] == "1"
    assert before <= int(said["MONOTONIC_USEC"]) <= clock_gettime_ns(1) // 1000


def test_a_stop_that_takes_long_is_given_the_time(manager):
    Service(environment(manager)).stopping(65.0)

    said = heard(manager)

    assert (said["STOPPING"], said["EXTEND_TIMEOUT_USEC"]) == ("1", "65000000")


def test_an_abstract_socket_is_told():
    name = f"cortex-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.settimeout(10)
        Service({"NOTIFY_SOCKET": f"@{name}"}).status("well")
        assert heard(listener) == {"STATUS": "well"}


@pytest.mark.parametrize("address", ["", "/nowhere/notify"])
def test_nobody_who_listens_is_no_error(address):
    Service({"NOTIFY_SOCKET": address}).ready("serving")


async def test_the_watchdog_is_fed_for_as_long_as_the_loop_runs(manager):
    service = Service(environment(manager, WATCHDOG_USEC="20000"))
    assert service.watchdog_s == 0.02

    feeding = asyncio.create_task(service.keep_alive())
    for _ in range(3):
        assert await next_said(manager) == {"WATCHDOG": "1"}
    feeding.cancel()


@pytest.mark.parametrize(
    "more", [{}, {"WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}]
)
async def test_without_a_watchdog_of_ours_nothing_is_fed(manager, more):
    service = Service(environment(manager, **more))
    assert service.watchdog_s == 0

    await asyncio.wait_for(service.keep_alive(), 5)


@pytest.mark.parametrize("command", ["serve", "neuron"])
async def test_a_program_says_when_it_serves_and_when_it_stops(
    command, tmp_path, manager, monkeypatch
):
    monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    text = config(tmp_path) if command == "serve" else 'harnesses = ["echo"]\n'
    async with program(tmp_path, text, command) as started:
        ready, fed = await next_said(manager), await next_said(manager)
        if ready == {"WATCHDOG": "1"}:
            ready, fed = fed, ready
        assert ready == {"READY": "1", "STATUS": f"serving on {started.address}"}
        assert fed == {"WATCHDOG": "1"}

        started.process.terminate()
        assert (await next_said(manager))["STOPPING"] == "1"
        async with asyncio.timeout(10):
            assert await started.process.wait() == 0
