"""Usage adds up, survives whatever ends the gateway, and keeps budgets."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import stat
from time import monotonic, time

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.config.schema import AuthSection, LedgerSection
from cortex.fleet.model import RequestRecord
from cortex.fleet.principal import Key, digest
from cortex.gateway import ledger as ledger_module
from cortex.gateway.ledger import DAY_S, Ledger
from cortex.testing import FakeNeuron, until
from tests.gateway.running import bearer, chat, running
from tests.gateway.test_command import config
from tests.neuron.serving import program

TODAY = 20_000


def record(principal: str = "zed", model: str = "m", tokens: int = 3) -> RequestRecord:
    return RequestRecord(
        id="r",
        model=model,
        node="n",
        dialect="d",
        principal=principal,
        status=200,
        outcome="ok",
        ttft_s=None,
        duration_s=0.0,
        prompt_tokens=tokens,
        completion_tokens=2 * tokens,
    )


def totals(ledger: Ledger) -> dict[tuple[str, str], tuple[int, int, int]]:
    return {
        (row.principal, row.model): (row.requests, row.prompt_tokens, row.completion_tokens)
        for row in ledger.usage(0)
    }


@pytest.fixture
def opened():
    ledgers = []

    def build(path=None) -> Ledger:
        ledgers.append(Ledger(path))
        ledgers[-1].open()
        return ledgers[-1]

    yield build
    for ledger in ledgers:
        ledger.close()


REQUESTS = st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 9))


@given(st.lists(st.one_of(REQUESTS, st.just("write"), st.just("fail"))))
def test_every_request_is_counted_once_however_writes_fall_and_fail(events):
    ledger, expected = Ledger(None), {}
    ledger._database = ledger_module._connected(":memory:")
    for event in events:
        match event:
            case "write":
                ledger.write()
            case "fail":
                pending = bool(ledger._pending)
                ledger._database.execute("ALTER TABLE usage RENAME TO elsewhere")
                try:
                    ledger.write()
                except sqlite3.Error:
                    assert pending
                ledger._database.execute("ALTER TABLE elsewhere RENAME TO usage")
            case principal, model, tokens:
                ledger.add(record(principal, model, tokens), TODAY)
                was = expected.get((principal, model), (0, 0, 0))
                add = (1, tokens, 2 * tokens)
                expected[principal, model] = tuple(map(sum, zip(was, add, strict=True)))
    assert totals(ledger) == expected
    ledger.close()


def test_usage_is_kept_by_day_and_found_again(opened, tmp_path):
    path = tmp_path / "state" / "ledger.db"
    first = opened(path)
    for day in (TODAY - 400, TODAY - 1, TODAY, TODAY):
        first.add(record(), day)
    first.close()
    again = opened(path)
    assert again.days("zed", TODAY) == {TODAY - 1: 9, TODAY: 18}
    assert again.days("amy", TODAY) == {}
    assert [(row.day, row.requests) for row in again.usage(TODAY - 1)] == [
        ("2024-10-03", 1),
        ("2024-10-04", 2),
    ]


def test_two_gateways_may_share_one(opened, tmp_path):
    one, two = opened(tmp_path / "ledger.db"), opened(tmp_path / "ledger.db")
    for ledger in (one, two, one):
        ledger.add(record(), TODAY)
        ledger.write()
    assert totals(one) == totals(two) == {("zed", "m"): (3, 9, 18)}


def test_while_another_holds_the_database_nothing_is_lost(opened, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(ledger_module, "BUSY_S", 0.01)
    ledger = opened(tmp_path / "ledger.db")
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    ledger.add(record(), TODAY)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        ledger.write()
    assert totals(ledger) == {}  # what is in there is told all the same
    other.execute("ROLLBACK")
    other.close()
    ledger.write()
    assert totals(ledger) == {("zed", "m"): (1, 3, 6)}


def test_only_its_owner_can_read_the_database(opened, tmp_path):
    path = tmp_path / "state" / "ledger.db"
    opened(path).add(record(), TODAY)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("there", ["in the way", "no database, and longer than its header" * 99])
def test_a_place_that_cannot_be_used_is_a_warning_and_usage_is_counted(
    opened, tmp_path, caplog, there
):
    (tmp_path / "file").write_text(there)
    ledger = opened(tmp_path / "file" / "x.db" if there == "in the way" else tmp_path / "file")
    ledger.add(record(), TODAY)
    assert totals(ledger) == {("zed", "m"): (1, 3, 6)}
    assert "usage is counted until this process ends" in caplog.text


def test_a_damaged_database_is_a_warning_and_usage_is_counted(opened, tmp_path, caplog):
    path = tmp_path / "ledger.db"
    before = opened(path)
    before.add(record(), TODAY)
    before.close()
    path.write_bytes(path.read_bytes()[:4096] + b"x" * 4096)  # the schema is whole, the table not
    ledger = opened(path)
    assert ledger.days("zed", TODAY) == {}
    ledger.add(record(), TODAY)
    assert totals(ledger) == {("zed", "m"): (1, 3, 6)}
    assert "malformed; usage is counted until this process ends" in caplog.text


ROOT = Key(name="root", sha256=digest("root"), admin=True)
ZED = Key(name="zed", sha256=digest("zed"), budget_tokens=15)


async def test_the_admin_api_says_who_used_what_up_to_now(tmp_path):
    auth, ledger = AuthSection(keys=(ROOT, ZED)), LedgerSection(path=tmp_path / "ledger.db")
    async with FakeNeuron(["m"]) as node, running(node, auth=auth, ledger=ledger) as gateway:
        await gateway.ask(key="zed")
        await gateway.ask()
        await gateway.refused(404, "model_not_found", "no such", key="zed")
        said = await gateway.get("/api/v1/usage?days=1", "root")
        today = said["since"]
        assert said["usage"] == [
            {"principal": who, "day": today, "model": model, "requests": 1, **tokens}
            for who, model, tokens in (
                ("anonymous", "m", {"prompt_tokens": 7, "completion_tokens": 3}),
                ("zed", "", {"prompt_tokens": 0, "completion_tokens": 0}),
                ("zed", "m", {"prompt_tokens": 7, "completion_tokens": 3}),
            )
        ]
        for days in ("0", "x", "-1", "100000", "1" * 5000):
            url = f"{gateway.url}/api/v1/usage?days={days}"
            async with gateway.client.get(url, headers=bearer("root")) as response:
                assert response.status == 400
                assert (await response.json())["error"]["param"] == "days"


async def test_a_budget_survives_a_restart(tmp_path):
    auth, ledger = AuthSection(keys=(ZED,)), LedgerSection(path=tmp_path / "ledger.db")
    async with FakeNeuron(["m"]) as node:
        for _ in range(2):
            async with running(node, auth=auth, ledger=ledger) as gateway:
                await gateway.ask(key="zed")
        async with running(node, auth=auth, ledger=ledger) as gateway:
            said = await gateway.refused(429, "insufficient_quota", key="zed")
            assert said["used"] == 20


async def test_a_gateway_that_is_killed_loses_a_second_of_usage_at_most(tmp_path):
    """What clients were told a second before the end is in the ledger, and nothing else is."""
    secrets = [f"secret {number}" for number in range(4)]
    keys = "".join(
        f'[[auth.keys]]\nname = "k{number}"\nsha256 = "{digest(secret)}"\n'
        for number, secret in enumerate(secrets)
    )
    told: list[tuple[float, str, int]] = []
    begun = dict.fromkeys((f"k{number}" for number in range(4)), 0)
    path = tmp_path / "ledger.db"

    async def ask_for_ever(url: str, number: int, client: aiohttp.ClientSession) -> None:
        headers = bearer(secrets[number])
        while True:
            begun[f"k{number}"] += 1
            async with client.post(url, data=chat("m"), headers=headers) as response:
                usage = json.loads(await response.read())["usage"]
            told.append((monotonic(), f"k{number}", usage["total_tokens"]))

    async with FakeNeuron(["m"]) as node:
        text = config(tmp_path, node, more=f'{keys}[ledger]\npath = "ledger.db"\n')
        async with program(tmp_path, text, "serve") as gateway:
            url = f"{gateway.url}/v1/chat/completions"
            asking = [
                asyncio.ensure_future(ask_for_ever(url, number % 4, gateway.client))
                for number in range(8)
            ]
            await until(lambda: told and monotonic() > told[0][0] + 1.7)
            gateway.process.kill()
            killed = monotonic()
            await gateway.process.wait()
            await asyncio.wait(asking)
            for task in asking:
                assert isinstance(task.exception(), aiohttp.ClientError | json.JSONDecodeError)

        ledger = Ledger(path)
        ledger.open()
        try:
            for name in begun:
                known = sum(ledger.days(name, int(time() // DAY_S)).values())
                early = sum(t for when, who, t in told if who == name and when < killed - 1)
                assert 0 < early <= known <= begun[name] * 10
        finally:
            ledger.close()
        async with program(tmp_path, text, "serve") as gateway:
            await gateway.post("/v1/chat/completions", **json.loads(chat("m")))
