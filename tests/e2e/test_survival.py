"""A gateway and three neurons under load lose a process, or the time; nobody is told a lie."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from email.utils import parsedate_to_datetime
from pathlib import Path

import openai
import pytest

from tests.e2e.hosts import lacking, switched
from tests.e2e.programs import descendants, running, until
from tests.e2e.trio import CAPITAL, NEURONS, SMALL, Load, Trio, story

pytestmark = [
    pytest.mark.model,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("torch"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
HOUR_S = 3600
VANISHED_S = 45.0  # 15 s, and what a busy machine adds
LISTEN = """
import sys, urllib.request
for line in urllib.request.urlopen(sys.argv[1]):
    print(line.decode(), end="", flush=True)
"""


@pytest.fixture(scope="module")
def net():
    """Hosts for all, and the switch between them; without what it takes all is on this host."""
    with ExitStack() as open_:
        yield None if lacking() else open_.enter_context(switched(["clients", "gateway", *NEURONS]))


@pytest.fixture(scope="module")
def shared_trio(net, model_cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trio")
    clock = folder / "clock"
    clock.write_text("+0")
    faked = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    hosts = net and net[0]
    with Trio(folder, model_cache, hosts, **(faked if FAKETIME else {})) as trio:
        yield trio


@pytest.fixture
def trio(shared_trio):
    shared_trio.until_whole()
    return shared_trio


@pytest.fixture
def cables(net):
    if net is None:
        pytest.skip(lacking())
    return net


def test_a_pulled_cable_is_noticed_and_others_go_on_until_it_is_back(trio, cables, capsys):
    hosts, switch = cables
    ejected = ejections(trio, "one", "small")
    for answer in crowd(trio, 3):
        answer.done.result(30)  # connections to all nodes are kept
    tales = [trio.begin(story(number, 100)) for number in range(24)]
    with Load(trio, streams=3) as load:
        until(lambda: all(tale.text for tale in tales))  # what has begun can go on elsewhere
        until(lambda: trio.metric("cortex_model_in_flight", model="m", node="two") >= 7)
        switch.pulled = frozenset([hosts["two"]])
        began = time.monotonic()
        late = crowd(trio, 3)  # some over connections that seem fine
        for answer in (*tales, *late):
            answer.done.result(60)
        freed_s = time.monotonic() - began
        until(lambda: not trio.up("two"), VANISHED_S, trio.programs["gateway"])
        noticed_s = time.monotonic() - began
        load.until_more()
        switch.pulled = frozenset()
        began = time.monotonic()
        until(lambda: trio.up("two"))
        until(lambda: trio.metric("cortex_model_in_flight", model="m", node="two"))
        used_s = time.monotonic() - began
        load.until_more()

    answers = [*tales, *late, *load.answers]
    assert [answer for answer in answers if not answer.is_honest] == []
    longest_s = max(answer.took_s for answer in answers)
    assert longest_s < VANISHED_S
    until(lambda: trio.metric("cortex_resumes_total"))
    resumed = trio.metric("cortex_resumes_total")
    retried = trio.metric("cortex_retries_total", node="two")
    assert retried >= 1
    assert ejections(trio, "one", "small") == ejected
    lost = sum(not answer.is_whole for answer in answers)
    with capsys.disabled():
        print(
            f"\na cable pulled: its requests freed {freed_s:.1f} s, node away {noticed_s:.1f} s; "
            f"{len(answers)} requests, {resumed:.0f} went on and {retried:.0f} were sent "
            f"elsewhere, {lost} errors, the longest {longest_s:.1f} s; back after {used_s:.1f} s"
        )


def test_a_hundredth_lost_and_a_fifth_of_a_second_each_way_only_slow_answers_down(
    trio, cables, capsys
):
    _, switch = cables
    trio.until_loaded(SMALL)
    ejected = ejections(trio)
    lost = switch.lost
    switch.delay_s, switch.loss = 0.2, 0.01
    try:
        capital = {"model": SMALL, "max_tokens": 8, "temperature": 0}
        answers = [trio.begin(story(number, 30), stream=number % 2 == 0) for number in range(48)]
        capitals = [trio.begin(CAPITAL, stream=stream, **capital) for stream in (True, False)]
        for answer in (*answers, *capitals):
            answer.done.result(60)
    finally:
        switch.delay_s, switch.loss = 0.0, 0.0

    assert [answer for answer in answers if not answer.is_whole] == []
    assert capitals[0].text == capitals[1].text
    assert "Paris" in capitals[0].text
    assert trio.up(*NEURONS)
    assert ejections(trio) == ejected
    assert not trio.metric("cortex_retries_total", node="small")
    assert switch.lost > lost
    longest_s = max(answer.took_s for answer in answers)
    with capsys.disabled():
        print(
            f"\na bad net: 50 requests, all whole, the longest {longest_s:.1f} s, "
            f"{switch.lost - lost} packets lost"
        )


def test_a_killed_gateway_cuts_its_streams_and_comes_back_without_a_load(trio, tmp_path, capsys):
    trio.until_loaded(SMALL)
    worker = descendants(trio.programs["small"].process.pid)
    commands = {
        name: [
            *trio.inside("clients"),
            sys.executable,
            "-c",
            LISTEN,
            f"http://{trio.listens[name]}/events",
        ]
        for name in NEURONS
    }
    with (
        running(commands["one"], tmp_path / "one"),
        running(commands["two"], tmp_path / "two"),
        running(commands["small"], tmp_path / "small"),
    ):
        for name in NEURONS:
            until(lambda n=name: "event: snapshot" in (tmp_path / n).read_text())
        tales = [trio.begin(story(number, 1000)) for number in range(6)]
        with Load(trio) as load:
            until(lambda: all(tale.text for tale in tales))
            trio.kill("gateway")
            for tale in tales:
                tale.done.result(30)
            began = time.monotonic()
            trio.start("gateway")
            listens_s = time.monotonic() - began
            load.until_more(1)
            served_s = time.monotonic() - began
            load.until_more()
        said = "".join((tmp_path / name).read_text() for name in NEURONS)

    for tale in tales:
        assert tale.error is not None, tale
        assert tale.finished is None
        assert tale.said.startswith(tale.text)
    assert [answer for answer in load.answers if not (answer.is_whole or answer.error)] == []
    assert "load_progress" not in said
    assert '"loading"' not in said
    assert descendants(trio.programs["small"].process.pid) == worker
    assert trio.metric("cortex_cold_starts_total") == 0
    for name in NEURONS:
        until(lambda n=name: not trio.metric("cortex_model_in_flight", node=n))
    with capsys.disabled():
        print(f"\na gateway killed: listens after {listens_s:.1f} s, first answer {served_s:.1f} s")


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime (Debian: faketime) is not installed")
def test_an_hour_more_or_less_on_the_wall_clock_changes_nothing(trio, capsys):
    trio.until_loaded(SMALL)
    clock = trio.folder / "clock"
    used, counted, ejected = usage(trio), trio.metric("cortex_requests_total"), ejections(trio)
    tales = [trio.begin(story(number, 160)) for number in range(3)]
    with Load(trio, streams=3) as load:
        until(lambda: all(tale.text for tale in tales))
        for hours in (1, -1, 0):
            clock.write_text(f"{hours * HOUR_S:+d}")
            until(lambda h=hours: abs(wall_of(trio) - time.time() - h * HOUR_S) < HOUR_S / 2)
            load.until_more()
        for tale in tales:
            tale.done.result(30)

    assert [answer for answer in (*tales, *load.answers) if not answer.is_whole] == []
    assert ejections(trio) == ejected
    assert trio.metric("cortex_model_loaded", model=SMALL) == 1  # its ttl_s is half an hour
    assert "unload" not in trio.log()
    asked = len(tales) + len(load.answers)
    until(lambda: trio.metric("cortex_requests_total") == counted + asked)
    assert usage(trio) - used == asked
    assert "Paris" in trio.capital()
    with capsys.disabled():
        print(f"\nthe clock an hour on, and back: {asked} requests, all whole")


def test_a_killed_neuron_costs_nobody_more_than_an_honest_error_and_serves_again(trio, capsys):
    trio.until_loaded(SMALL)
    resumed = trio.metric("cortex_resumes_total")
    fox = trio.begin("Write a very long story about a fox.", model=SMALL, max_tokens=4000)
    tales = [trio.begin(story(number, 160)) for number in range(6)]
    with Load(trio) as load:
        until(lambda: all(tale.text for tale in (fox, *tales)))
        trio.kill("small")
        for tale in (fox, *tales):
            tale.done.result(60)
        load.until_more()
        trio.start("small")
        began = time.monotonic()
        until(lambda: trio.metric("cortex_model_in_flight", model="m", node="small"))
        used_s = time.monotonic() - began
        load.until_more()
        log = trio.log()

    assert isinstance(fox.error, openai.APIError)
    assert fox.error.code == "upstream_died"
    answers = [*tales, *load.answers]
    assert [answer for answer in answers if not answer.is_honest] == []
    assert [tale for tale in tales if not tale.is_whole] == []
    until(lambda: trio.metric("cortex_resumes_total") > resumed)
    resumed = trio.metric("cortex_resumes_total") - resumed
    lost = [answer for answer in answers if not answer.is_whole]
    assert "node small: " in log
    longest_s = max(answer.took_s for answer in answers)
    with capsys.disabled():
        print(
            f"\na neuron killed: {len(answers)} requests, {resumed:.0f} went on elsewhere, "
            f"{len(lost)} errors, the longest {longest_s:.1f} s; used after {used_s:.1f} s"
        )


def wall_of(trio):
    """Return what time the gateway takes it to be."""
    headers, _ = trio.get(f"{trio.url}/health")
    return parsedate_to_datetime(headers["Date"]).timestamp()


def usage(trio):
    """Return how many requests the ledger knows of."""
    return sum(row["requests"] for row in trio.api("usage?days=3")["usage"])


def ejections(trio, *names):
    return sum(trio.metric("cortex_ejections_total", node=name) for name in names or NEURONS)


def crowd(trio, words):
    """Ask for many answers at once, half of them as streams."""
    return [trio.begin(story(n, words), stream=n % 2 == 0) for n in range(24)]
