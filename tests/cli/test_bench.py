"""`cortex bench` against neurons that do as they are told: what it counts, asks and says."""

from __future__ import annotations

import asyncio
import json
import statistics
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.__main__ import main
from cortex.cli.bench.answer import Answer
from cortex.cli.bench.figures import percentile, read
from cortex.cli.bench.workload import LEAST_TOKENS, MOST_TOKENS, Workload
from cortex.config.schema import AuthSection
from cortex.errors import QueueFull
from cortex.fleet.principal import Key, digest
from cortex.testing import FakeNeuron, until
from tests.gateway.running import running

EARLY = 0.9  # a timer may be a little early


async def bench(*args: str) -> int:
    """Run the command beside this event loop."""
    return await asyncio.to_thread(main, ["bench", *args])


def prompts(fake: FakeNeuron) -> list[str]:
    return [json.loads(body)["messages"][0]["content"] for body in fake.bodies]


async def test_tokens_requests_and_times_are_what_the_neuron_gave(capsys):
    fake = FakeNeuron(["m"])
    fake.answer, fake.token_s = "one two three four five six seven eight", 0.02
    fake.cached_tokens = 2
    async with fake, running(fake) as gateway:
        asked = ("--concurrency=1,3", "--requests=4", "--output-tokens=8", "--input-tokens=20")
        assert await bench("--url", f"{gateway.url}/v1/", *asked, "--json") == 0
    said = capsys.readouterr()
    report = json.loads(said.out)

    assert report["workload"]["model"] == "m"
    assert [row["concurrency"] for row in report["rows"]] == [1, 3]
    for row in report["rows"]:
        assert (row["requests"], row["completed"], row["failed"]) == (4, 4, 0)
        assert (row["input_tokens"], row["cached_tokens"], row["output_tokens"]) == (28, 8, 32)
        assert row["ended_early"] == row["uncounted"] == 0
        assert row["ttft_ms"]["p50"] >= 20 * EARLY
        assert row["e2el_ms"]["p50"] >= 160 * EARLY
        assert row["ttft_ms"]["p99"] < row["e2el_ms"]["p99"]
        assert row["tpot_ms"]["mean"] * 7 + row["ttft_ms"]["mean"] <= row["e2el_ms"]["mean"] + 0.1
        assert row["output_tokens_per_s"] == pytest.approx(32 / row["duration_s"], rel=0.01)
    assert fake.counts["chat"] == 2 * (1 + 4)  # a warm-up before each row
    assert len({prompt.split()[0] for prompt in prompts(fake)}) == 10
    assert all(len(prompt.split()) == 20 for prompt in prompts(fake))
    for body in map(json.loads, fake.bodies):
        assert (body["max_tokens"], body["temperature"]) == (8, 0)
        assert "ignore_eos" not in body


async def test_answers_that_ended_early_are_told(capsys):
    async with FakeNeuron(["m"]) as fake:
        asked = ("--requests=3", "--output-tokens=4", "--ignore-eos", "--json")
        assert await bench("--url", fake.endpoint, *asked) == 0
    said = capsys.readouterr()
    [row] = json.loads(said.out)["rows"]
    assert (row["ended_early"], row["output_tokens"]) == (3, 9)
    assert "1: 3 of 3 answers ended before the length they were asked for" in said.err
    assert json.loads(fake.bodies[0])["ignore_eos"] is True


async def test_so_many_clients_as_asked_wait_for_their_answers_at_once(capsys):
    fake = FakeNeuron(["m"])
    fake.ending = "late"
    async with fake:
        asked = ("--concurrency=2", "--requests=5", "--warm-up=0", "--json")
        running_bench = asyncio.create_task(bench("--url", fake.endpoint, *asked))
        await until(lambda: fake.in_flight["m"] == 2)
        assert fake.counts["chat"] == 2
        fake.may_answer.set()
        assert await running_bench == 0
    assert fake.counts["chat"] == 5
    capsys.readouterr()


async def test_arrivals_at_a_rate_do_not_wait_for_answers(capsys):
    fake = FakeNeuron(["m"])
    fake.ending = "late"
    async with fake:
        asked = ("--rate=500", "--requests=5", "--warm-up=0", "--json")
        running_bench = asyncio.create_task(bench("--url", fake.endpoint, *asked))
        await until(lambda: fake.in_flight["m"] == 5)
        fake.may_answer.set()
        assert await running_bench == 0
    [row] = json.loads(capsys.readouterr().out)["rows"]
    assert (row["rate"], row["concurrency"], row["completed"]) == (500, None, 5)


async def test_no_request_begins_after_the_time_is_over(capsys):
    fake = FakeNeuron(["m"])
    fake.token_s = 0.1
    async with fake:
        assert await bench("--url", fake.endpoint, "--seconds=0.2", "--json") == 0
    [row] = json.loads(capsys.readouterr().out)["rows"]
    assert 1 <= row["requests"] == row["completed"] <= 1 + 0.2 / (0.3 * EARLY)


async def test_failures_are_counted_by_code_and_none_that_succeeds_is_a_failure(capsys):
    fake = FakeNeuron(["m"])
    async with fake:
        fake.refusal = QueueFull("too many wait")
        asked = ("--url", fake.endpoint, "--requests=3", "--warm-up=0")
        assert await bench(*asked) == 1
        said = capsys.readouterr()
        assert f"1: 3 of 3 failed with {QueueFull.code}: too many wait" in said.err

        fake.refusal, fake.ending = None, "midway"
        assert await bench(*asked, "--json") == 1
        [row] = json.loads(capsys.readouterr().out)["rows"]
        assert (row["errors"], row["output_tokens"]) == ({"cut_off": 3}, 0)

        assert await bench("--url", fake.endpoint) == 1
        assert "the warm-up failed with cut_off" in capsys.readouterr().err


async def test_an_error_in_the_stream_is_counted_by_its_code(capsys):
    fake = FakeNeuron(["m"])
    fake.ending = "midway"
    async with fake, running(fake, resume=False) as gateway:
        asked = ("--requests=2", "--warm-up=0", "--json")
        assert await bench("--url", gateway.url, *asked) == 1
    [row] = json.loads(capsys.readouterr().out)["rows"]
    assert row["failed"] == sum(row["errors"].values()) == 2
    assert not {"cut_off", "bad_event"} & {*row["errors"]}


async def test_a_model_that_is_not_there_is_told_with_the_nearest(capsys):
    async with FakeNeuron(["smollm2-135m"]) as fake:
        assert await bench("--url", fake.endpoint, "-m", "smollm-135m") == 1
    assert "did you mean 'smollm2-135m'?" in capsys.readouterr().err
    assert not fake.counts["chat"]


async def test_a_key_is_sent_and_its_absence_explained(capsys):
    auth = AuthSection(require=True, keys=(Key(name="zed", sha256=digest("sk-1")),))
    async with FakeNeuron(["m"]) as fake, running(fake, auth=auth) as gateway:
        asked = ("--url", gateway.url, "--requests=1")
        assert await bench(*asked) == 1
        assert "give a key with --key" in capsys.readouterr().err
        assert await bench(*asked, "--api-key=sk-1") == 0
    capsys.readouterr()


def test_nobody_there_is_a_sentence(nowhere, capsys):
    assert main(["bench"]) == 1
    assert f"no gateway listens at {nowhere}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", ["--concurrency=0", "--concurrency=1,x", "--rate=0", "--rate=nan", "--requests=0"]
)
def test_a_load_that_is_none_is_bad_usage(wrong, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", wrong])
    assert "expected a" in capsys.readouterr().err


# Other servers.


def other_server(gateway, path: str, event: dict) -> None:
    gateway.json("GET", "/v1/models", {"data": [{"id": "a", "capabilities": {"vision": False}}]})
    gateway.events(path, [event, event, "[DONE]"])


def test_completions_are_asked_for_and_pieces_counted_where_usage_is_missing(gateway, capsys):
    other_server(gateway, "/v1/completions", {"choices": [{"index": 0, "text": "x"}]})
    assert main(["bench", "--api=completions", "--requests=2", "--json"]) == 0
    said = capsys.readouterr()
    [row] = json.loads(said.out)["rows"]
    assert (row["completed"], row["output_tokens"], row["uncounted"]) == (2, 4, 2)
    assert "2 answers came without usage; pieces are counted" in said.err
    body = gateway.calls[-1].body
    assert body["model"] == "a"
    assert isinstance(body["prompt"], str)


def test_a_server_that_lists_no_models_is_asked_for_the_one_named(gateway, capsys):
    gateway.events("/v1/chat/completions", [{"choices": [{"delta": {"content": "x"}}]}, "[DONE]"])
    assert main(["bench", "-m", "b", "--requests=1"]) == 0
    assert gateway.calls[-1].body["model"] == "b"
    capsys.readouterr()


def test_a_terminal_sees_a_table_and_bars(gateway, terminal):
    other_server(gateway, "/v1/chat/completions", {"choices": [{"delta": {"content": "x"}}]})
    screen = terminal("bench", "--concurrency=1,2", "--requests=2", "--plot", columns=80)
    screen.see("2 at once")  # the bar of a row
    screen.see("CONCURRENCY")
    screen.see("output tokens/s")
    screen.see("E2EL ms")
    assert screen.leave() == 0


# Runs that were saved.


async def test_a_saved_run_is_compared_with_the_next_and_two_without_asking(capsys, tmp_path):
    first, second = str(tmp_path / "first.json"), str(tmp_path / "second.json")
    async with FakeNeuron(["m"]) as fake:
        asked = ("--url", fake.endpoint, "--requests=2", "--output-tokens=3")
        assert await bench(*asked, "--save", first, "--concurrency=1,2") == 0
        assert await bench(*asked, "--save", second, "--compare", first, "--seed=1") == 0
    said = capsys.readouterr().out
    assert "the two asked for different things: seed 0, then 1" in said
    assert "in one of the two only: 2" in said
    chats = fake.counts["chat"]

    file = tmp_path / "first.json"
    known = json.loads(file.read_text("utf-8"))
    known["rows"][0]["output_tokens_per_s"] = 100.0
    known["rows"][1] = {**known["rows"][0], "output_tokens_per_s": 125.0}
    file.write_text(json.dumps({**known, "rows": known["rows"][:1]}), "utf-8")
    (tmp_path / "second.json").write_text(json.dumps({**known, "rows": known["rows"][1:]}), "utf-8")
    assert main(["bench", "--compare", first, second]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "output tokens/s" in x)
    assert line.split()[-3:] == ["100", "125", "+25.0%"]
    assert fake.counts["chat"] == chats
    assert read(file).workload.output_tokens == 3


def test_a_file_that_is_no_run_is_told(tmp_path, capsys):
    (tmp_path / "odd.json").write_text("{}")
    for name in ("odd.json", "missing.json"):
        assert main(["bench", "--compare", str(tmp_path / name)]) == 1
        said = capsys.readouterr().err
        assert f"cannot compare with {tmp_path / name}: " in said
        assert "Errno" not in said


# What is asked.


def test_a_seed_gives_the_same_requests_but_for_one_word():
    once, again = (Workload(model="m", mix="chat", seed=7) for _ in range(2))
    other = Workload(model="m", mix="chat", seed=8)
    for number in range(20):
        asked = once.request(number, "mark")
        assert asked == again.request(number, "mark")
        assert asked != other.request(number, "mark")
        prompt, changed = (
            json.loads(once.request(number, mark).body)["messages"][0]["content"].split()
            for mark in ("a", "b")
        )
        assert prompt[0] != changed[0]
        assert prompt[1:] == changed[1:]


def test_lengths_of_a_mix_are_those_of_chats():
    workload = Workload(model="m", mix="chat")
    asked = [workload.request(number, "mark") for number in range(3000)]
    inputs = [len(json.loads(one.body)["messages"][0]["content"].split()) for one in asked]
    outputs = [one.output_tokens for one in asked]
    assert statistics.fmean(inputs) == pytest.approx(160, rel=0.1)
    assert statistics.fmean(outputs) == pytest.approx(340, rel=0.1)
    assert min(inputs + outputs) == LEAST_TOKENS
    assert max(inputs + outputs) == MOST_TOKENS


def test_a_shared_prefix_stands_before_what_differs():
    workload = Workload(model="m", input_tokens=10, output_tokens=1, shared_prefix=30)
    prompt, other = (
        json.loads(workload.request(number, f"mark{number}").body)["messages"][0]["content"].split()
        for number in (1, 2)
    )
    assert len(prompt) == 40
    assert prompt[:30] == other[:30]
    assert (prompt[30], other[30]) == ("mark1", "mark2")


def test_lengths_are_fixed_or_mixed_and_not_both(gateway, capsys):
    other_server(gateway, "/v1/chat/completions", {})
    assert main(["bench", "--mix=chat", "--output-tokens=3"]) == 1
    assert "--mix draws the lengths" in capsys.readouterr().err


# What is read.

STREAM = (
    b": hello\r\n\r\n"
    b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\r\n\r\n'
    b'data:{"choices":[{"delta":{"reasoning_content":"a"}}]}\n\n'
    b'data: {"choices":[{"delta":{"content":"\xc3\xa4"}}]}\n\n'
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,'
    b'"prompt_tokens_details":null}}\n\n'
    b"data: [DONE]\n\n"
)


@given(st.sets(st.integers(1, len(STREAM) - 1)))
def test_a_stream_is_read_the_same_however_it_is_cut(cuts):
    answer, before = Answer(began_s=0, asked_tokens=2), 0
    for now, cut in enumerate([*sorted(cuts), len(STREAM)], 1):
        answer.feed(STREAM[before:cut], now)
        before = cut
    answer.finish(1000)
    assert answer.error is None
    assert (answer.pieces, answer.output_tokens, answer.is_early) == (2, 2, False)
    assert answer.first_s is not None
    assert answer.gaps_s == array("d", [answer.last_s - answer.first_s])
    assert answer.end_s == len(cuts) + 1 or STREAM[max(cuts) :].strip() == b""


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (b'data: {"error":{"message":"gone","code":"node_lost"}}\n\n', "node_lost"),
        (b'data: {"error":{"message":"gone","type":"Bad","code":500}}\n\n', "Bad"),
        (b'data: {"error":"gone"}\n\n', "http_200"),
        (b"data: gone\n\n", "bad_event"),
        (b"", "cut_off"),
    ],
)
def test_a_stream_that_fails_has_a_code(event, code):
    answer = Answer(began_s=0, asked_tokens=2)
    answer.feed(event, 1)
    answer.finish(2)
    assert answer.error == code


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=50))
def test_percentiles_are_interpolated(values):
    values.sort()
    known = statistics.quantiles(values, n=100, method="inclusive")
    for at in (50, 90, 99):
        assert percentile(values, at / 100) == pytest.approx(known[at - 1])
