"""A neuron is killed while it answers: another goes on, or nobody's stream ends as if whole."""

from __future__ import annotations

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import anthropic
import openai
import pytest

from tests.e2e.programs import running
from tests.neuron.serving import REPOSITORY

NEURON = """
listen = "127.0.0.1:0"
harnesses = ["echo"]
[[default_models]]
model_id = "m"
harness = "echo"
[harness.echo]
delay_s = 0.05
"""
GATEWAY = """
[gateway]
listen = "127.0.0.1:0"
metrics_listen = "127.0.0.1:0"
"""
BOX = """
[[neurons]]
name = "{name}"
endpoint = "{neuron}"
"""
MODELS = """
[[models]]
id = "m"
harness = "echo"
"""
SAID = [{"role": "user", "content": "word " * 1000}]
WORDS = 160  # eight seconds: all streams are under way when the neuron dies, on a busy host too
ASK = {"model": "m", "stream": True}
pytestmark = pytest.mark.timeout(90)


def test_a_killed_neuron_is_an_error_in_every_dialect(tmp_path):
    env = {"HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    for name, text in (("neuron", NEURON), ("models", MODELS)):
        (tmp_path / f"{name}.toml").write_text(text)
    cortex = [sys.executable, "-m", "cortex"]
    with ExitStack() as open_:
        neuron = open_.enter_context(
            running([*cortex, "neuron", "--config", "neuron.toml"], tmp_path / "neuron.log", **env)
        )
        (tmp_path / "cortex.toml").write_text(GATEWAY + BOX.format(name="box", neuron=neuron.url()))
        gateway = open_.enter_context(
            running([*cortex, "serve", "--config", "cortex.toml"], tmp_path / "serve.log", **env)
        )
        more = {"api_key": "none", "max_retries": 0, "timeout": 30}
        ai = open_.enter_context(openai.OpenAI(base_url=f"{gateway.url()}/v1", **more))
        claude = open_.enter_context(anthropic.Anthropic(base_url=gateway.url(), **more))
        pool = open_.enter_context(ThreadPoolExecutor())
        chat = iter(ai.chat.completions.create(messages=SAID, **ASK))
        responses = iter(ai.responses.create(input=SAID, **ASK))
        messages = iter(claude.messages.create(messages=SAID, max_tokens=2000, **ASK))
        for stream in (chat, responses, messages):
            assert [next(stream) for _ in range(8)]
        whole = pool.submit(ai.chat.completions.create, model="m", messages=SAID)

        neuron.process.send_signal(signal.SIGKILL)

        for stream in (chat, responses):
            with pytest.raises(openai.APIError, match="died while it answered") as caught:
                list(stream)
            assert caught.value.code == "upstream_died"
        with pytest.raises(anthropic.APIStatusError, match="died while it answered") as caught:
            list(messages)
        assert caught.value.type == "api_error"
        with pytest.raises(openai.InternalServerError):
            whole.result(30)


def test_the_streams_of_a_killed_neuron_go_on_from_another(tmp_path):
    env = {"HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    for name, text in (("neuron", NEURON), ("models", MODELS)):
        (tmp_path / f"{name}.toml").write_text(text)
    cortex = [sys.executable, "-m", "cortex"]
    text = " ".join(f"word{number}" for number in range(WORDS))
    said = [{"role": "user", "content": text}]
    with ExitStack() as open_:
        neurons = [
            open_.enter_context(
                running([*cortex, "neuron", "--config", "neuron.toml"], tmp_path / log, **env)
            )
            for log in ("one.log", "two.log")
        ]
        boxes = [BOX.format(name=f"box{n}", neuron=one.url()) for n, one in enumerate(neurons)]
        (tmp_path / "cortex.toml").write_text(GATEWAY + "".join(boxes))
        log = tmp_path / "serve.log"
        gateway = open_.enter_context(
            running([*cortex, "serve", "--config", "cortex.toml"], log, **env)
        )
        more = {"api_key": "none", "max_retries": 0, "timeout": 30}
        ai = open_.enter_context(openai.OpenAI(base_url=f"{gateway.url()}/v1", **more))
        claude = open_.enter_context(anthropic.Anthropic(base_url=gateway.url(), **more))
        usage = {"stream_options": {"include_usage": True}}
        chats, responses, messages = [
            [ask() for _ in neurons]  # one on each
            for ask in (
                lambda: ai.chat.completions.create(messages=said, **ASK, **usage),
                lambda: ai.responses.create(input=said, **ASK),
                lambda: claude.messages.create(messages=said, max_tokens=2000, **ASK),
            )
        ]
        for stream in (*chats, *responses, *messages):
            assert [next(stream) for _ in range(8)]

        neurons[0].process.send_signal(signal.SIGKILL)

        for stream in chats:
            chunks = list(stream)
            assert chunks[-1].usage.completion_tokens == WORDS
            rest = "".join(c.choices[0].delta.content or "" for c in chunks[:-1])
            assert text.endswith(rest)
        for stream in responses:
            last = list(stream)[-1].response
            assert (last.output_text, last.usage.output_tokens) == (text, WORDS)
        for stream in messages:
            events = list(stream)
            rest = "".join(e.delta.text for e in events if e.type == "content_block_delta")
            assert text.endswith(rest)
            assert events[-1].type == "message_stop"
        assert log.read_text().count("box1 went on") == len((chats, responses, messages))
