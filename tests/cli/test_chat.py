"""``cortex chat``: one answer, and a conversation at a terminal."""

from __future__ import annotations

import io
import json
import threading

import pytest

from cortex.__main__ import main
from cortex.cli.answers import Answer, printable
from cortex.cli.client import Gateway
from cortex.cli.conversation import Conversation

PATH = "/v1/chat/completions"
USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 3,
    "total_tokens": 15,
    "cortex": {"queue_ms": 1.5, "prefill_ms": 20.0, "decode_ms": 50.0},
}


def delta(reason: str | None = None, **fields: str) -> dict:
    choice = {"index": 0, "delta": fields, "finish_reason": reason}
    return {"id": "chatcmpl-1", "choices": [choice], "usage": None}


def answer(*pieces: str) -> list[object]:
    """Return the events of a good answer, keep-alives and all."""
    return [
        delta(),
        delta(role="assistant", content=""),
        *(delta(content=piece) for piece in pieces),
        delta("stop"),
        {"choices": [], "usage": USAGE},
        "[DONE]",
    ]


@pytest.fixture
def models(gateway):
    def tell(*rows: dict) -> None:
        gateway.json("GET", "/v1/models", {"object": "list", "data": rows})

    tell({"id": "org/a", "loaded": True}, {"id": "org/b"}, {"id": "small", "alias_of": "org/b"})
    return tell


def test_a_prompt_streams_one_answer_from_the_model_that_is_loaded(gateway, models, capsys):
    gateway.events(PATH, answer("Because", " of", "\nRayleigh."))

    assert main(["chat", "why", "is the sky blue?"]) == 0

    assert capsys.readouterr() == ("Because of\nRayleigh.\n", "")
    assert gateway.calls[-1].body == {
        "model": "org/a",
        "messages": [{"role": "user", "content": "why is the sky blue?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_options_reach_the_gateway(gateway, capsys):
    gateway.events(PATH, answer("ok"))

    options = ["-m", "org/b", "--system", "be brief", "--temperature", "0", "--max-tokens", "5"]
    assert main(["chat", *options, "--key", "k", "hi"]) == 0

    *_, call = gateway.calls
    assert call.headers["authorization"] == "Bearer k"
    assert call.body["model"] == "org/b"
    assert (call.body["temperature"], call.body["max_tokens"]) == (0.0, 5)
    assert call.body["messages"][0] == {"role": "system", "content": "be brief"}


def test_stdin_is_the_prompt_if_it_is_no_terminal(gateway, models, capsys, monkeypatch):
    gateway.events(PATH, answer("ok"))
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe\n"))

    assert main(["chat"]) == 0

    assert gateway.calls[-1].body["messages"] == [{"role": "user", "content": "from a pipe\n"}]


def test_an_empty_prompt_is_an_error_with_an_example(gateway, models, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))

    assert main(["chat"]) == 1

    assert "the prompt is empty (say something: cortex chat" in capsys.readouterr().err


def test_json_is_one_object_with_text_usage_and_timings(gateway, models, capsys):
    events = [delta(reasoning_content="hm"), *answer("4", "2")]
    gateway.events(PATH, events)

    assert main(["chat", "--json", "hi"]) == 0

    said = json.loads(capsys.readouterr().out)
    timings = said.pop("timings")
    assert said == {
        "model": "org/a",
        "text": "42",
        "reasoning": "hm",
        "finish_reason": "stop",
        "usage": USAGE,
    }
    assert timings["total_ms"] >= timings["first_token_ms"] >= 0
    assert (timings["queue_ms"], timings["decode_ms"]) == (1.5, 50.0)


def test_stats_go_to_stderr(gateway, models, capsys):
    gateway.events(PATH, answer("4"))

    assert main(["chat", "--stats", "hi"]) == 0

    said = capsys.readouterr()
    assert said.out == "4\n"
    assert said.err.startswith("12 tokens in, 3 out, 40.0 tok/s, first after ")


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": "many"}])
def test_stats_without_counts_say_so(usage):
    assert "did not count tokens" in Answer(usage=usage, total_s=1.0).stats()
    assert Answer(usage=usage).report("m")["usage"] == usage


def test_an_error_in_the_stream_ends_with_1_and_its_message(gateway, models, capsys):
    error = {"error": {"message": "the neuron died", "type": "api_error", "code": "upstream_died"}}
    gateway.events(PATH, [delta(content="Becau"), error])

    assert main(["chat", "hi"]) == 1

    assert capsys.readouterr() == ("Becau\n", "cortex chat: the neuron died\n")


@pytest.mark.parametrize("events", [[], [delta(content="Becau")], [delta(content="B"), "[DONE]"]])
def test_a_stream_without_a_finish_reason_is_an_error(gateway, models, capsys, events):
    gateway.events(PATH, events)

    assert main(["chat", "--json", "hi"]) == 1

    said = capsys.readouterr()
    assert said.out == ""
    assert "the answer ended in the middle" in said.err


def test_an_event_that_is_no_chunk_is_an_error(gateway, models, capsys):
    gateway.events(PATH, ["<html>"])

    assert main(["chat", "hi"]) == 1

    assert "the gateway sent an event that is no chat chunk" in capsys.readouterr().err


def test_a_refusal_passes_the_gateways_words_on(gateway, capsys):
    gateway.error("POST", PATH, 404, "model_not_found", "no model 'x' (did you mean 'y'?)")

    assert main(["chat", "-m", "x", "hi"]) == 1

    assert capsys.readouterr().err == "cortex chat: no model 'x' (did you mean 'y'?)\n"


def test_a_gateway_that_is_down_is_named(nowhere, capsys):
    assert main(["chat", "hi"]) == 1

    assert f"no gateway listens at {nowhere}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "the gateway knows no model to talk to (add [[models]] to models.toml)"),
        (
            [{"id": "a"}, {"id": "b"}, {"id": "c", "alias_of": "b"}],
            "several models are in the catalogue and none is loaded: a, b (choose one with -m",
        ),
        (
            [{"id": "a", "loaded": True}, {"id": "b", "loaded": True}, {"id": "c"}],
            "several models are loaded: a, b (choose one with -m MODEL)",
        ),
    ],
)
def test_without_a_model_to_take_for_granted_the_choice_is_listed(models, capsys, rows, said):
    models(*rows)

    assert main(["chat", "hi"]) == 1

    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "rows",
    [
        [{"id": "org/a", "loaded": False}],
        [{"id": "org/a"}, {"id": "embed", "loaded": True, "capabilities": ["embedding"]}],
    ],
)
def test_the_only_model_that_chats_is_taken_loaded_or_not(gateway, models, rows):
    models(*rows)
    gateway.events(PATH, answer("ok"))

    assert main(["chat", "hi"]) == 0

    assert gateway.calls[-1].body["model"] == "org/a"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [("plain é\t\n", "plain é\t\n"), ("\x1b]0;title\x07\x9b2J\r", "]0;title2J"), ("👩‍🚀", "👩‍🚀")],
)
def test_control_characters_never_reach_a_terminal(raw, shown):
    assert printable(raw) == shown


def test_as_a_program_it_reads_stdin(gateway, models, command):
    gateway.events(PATH, answer("4", "2"))

    done = command("chat", "--stats", stdin="what is it?")

    assert (done.returncode, done.stdout) == (0, "42\n")
    assert "tok/s" in done.stderr


def test_a_conversation_remembers_forgets_and_switches(gateway, models, terminal):
    gateway.events(PATH, answer("Hello", " you"))
    screen = terminal("chat", "--system", "be brief", "--stats")
    screen.see("talking to org/a")

    screen.see("> ")
    screen.type("hi\n")
    screen.see("Hello you\n")
    screen.see("12 tokens in, 3 out")
    screen.see("> ")
    screen.type("again\n")
    screen.see("Hello you\n")
    assert [m["content"] for m in gateway.calls[-1].body["messages"]] == [
        "be brief",
        "hi",
        "Hello you",
        "again",
    ]

    screen.type("/clear\n")
    screen.see("forgotten")
    screen.type("/model small\n")
    screen.see("talking to small")
    screen.type("fresh\n")
    screen.see("Hello you\n")
    body = gateway.calls[-1].body
    assert body["model"] == "small"
    assert [m["content"] for m in body["messages"]] == ["be brief", "fresh"]

    screen.type("/quit\n")
    assert screen.leave() == 0


def test_a_conversation_explains_its_mistakes_and_goes_on(gateway, models, terminal):
    gateway.events(PATH, [{"error": {"message": "the neuron died", "code": "upstream_died"}}])
    screen = terminal("chat")
    screen.see("> ")

    screen.type("hi\n")
    screen.see("cortex chat: the neuron died")
    screen.type("/model org/c\n")
    screen.see("no model is called 'org/c' (did you mean 'org/")
    screen.type("/model\n")
    screen.see("* org/a")
    screen.type("/what\n")
    screen.see("/clear  forget what was said")

    gateway.events(PATH, answer("ok"))
    screen.type("still there?\n")
    screen.see("ok\n")
    assert [m["content"] for m in gateway.calls[-1].body["messages"]] == ["still there?"]
    screen.see("> ")
    screen.type("\x04")
    assert screen.leave() == 0


def test_ctrl_c_stops_the_answer_and_keeps_what_came(gateway, models, terminal):
    over, gone = threading.Event(), threading.Event()

    def endless():
        yield f"data: {json.dumps(delta(content='It all began'))}\n\n".encode()
        try:
            while not over.wait(0.01):
                yield b": still here\n\n"
        finally:
            gone.set()

    gateway.on("POST", PATH, lambda _: (200, {}, endless()))
    screen = terminal("chat")
    screen.see("> ")
    screen.type("tell me a story\n")
    screen.see("It all began")

    screen.interrupt()

    screen.see("> ")
    assert gone.wait(10)  # the connection was closed, so the model stops too
    gateway.events(PATH, answer("ok"))
    screen.type("and then?\n")
    screen.see("ok\n")
    assert [m["content"] for m in gateway.calls[-1].body["messages"]] == [
        "tell me a story",
        "It all began",
        "and then?",
    ]
    screen.see("> ")
    screen.type("/quit\n")
    assert screen.leave() == 0


def test_ctrl_c_at_the_prompt_only_starts_a_fresh_line(gateway, monkeypatch, capsys):
    lines = iter([KeyboardInterrupt, EOFError])

    def type_nothing(prompt: str) -> str:
        raise next(lines)

    monkeypatch.setattr("builtins.input", type_nothing)

    assert Conversation(Gateway(gateway.url), "m", {}, None, stats=False).run() == 0

    assert capsys.readouterr().out == "\n\n"
    assert gateway.calls == []


def test_a_cold_model_is_loaded_before_it_is_asked(gateway, capsys):
    gateway.json("GET", "/v1/models", {"data": [{"id": "org/b", "loaded": False}]})
    gateway.json("POST", "/api/v1/models/org%2Fb/load", {"status": "loaded"})
    gateway.events(PATH, answer("ok"))

    assert main(["chat", "-m", "org/b", "hi"]) == 0

    posts = [call.path for call in gateway.calls if call.method == "POST"]
    assert posts == ["/api/v1/models/org%2Fb/load", PATH]
    assert capsys.readouterr().out == "ok\n"


def test_a_load_that_may_not_be_asked_for_is_left_to_the_request(gateway, capsys):
    gateway.json("GET", "/v1/models", {"data": [{"id": "org/b", "loaded": False}]})
    gateway.error("POST", "/api/v1/models/org%2Fb/load", 403, "permission_denied", "not for you")
    gateway.events(PATH, answer("ok"))

    assert main(["chat", "-m", "org/b", "hi"]) == 0

    assert capsys.readouterr().out == "ok\n"
