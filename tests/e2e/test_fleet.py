"""The main job, for real: the zipapp serves SmolLM2-135M over sockets to real clients."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import anthropic
import openai
import pytest

from tests.e2e.programs import descendants, running, until

pytestmark = [
    pytest.mark.model,
    pytest.mark.timeout(240),
    pytest.mark.xdist_group("torch"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
MODEL = "smollm2-135m"
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
LONG = [{"role": "user", "content": "Write a very long story about a fox and a river."}]
NEURON_TOML = """
listen = "127.0.0.1:0"
harnesses = ["torch", "echo"]
[harness.torch]
threads = 1  # other tests run beside these
"""
CORTEX_TOML = """
[gateway]
listen = "127.0.0.1:0"
metrics_listen = "127.0.0.1:0"
[[neurons]]
name = "box"
endpoint = "{neuron}"
"""
MODELS_TOML = f"""
[[models]]
id = "{MODEL}"
defaults = {{ temperature = 0.0 }}
[aliases]
small = "{MODEL}"
"""


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())


class Fleet:
    """A gateway and a neuron, both out of the zipapp."""

    def __init__(self, gateway, neuron):
        self.gateway, self.neuron = gateway, neuron
        self.gateway_url, self.neuron_url = gateway.url(), neuron.url()
        self.client = openai.OpenAI(
            base_url=f"{self.gateway_url}/v1", api_key="none", timeout=120, max_retries=0
        )

    def ask(self, messages=CAPITAL, **more):
        more = {"temperature": 0, "max_tokens": 64, **more}
        return self.client.chat.completions.create(model=MODEL, messages=messages, **more)

    def model(self):
        return next((m for m in get(f"{self.neuron_url}/models") if m["id"] == MODEL), None)

    def health(self):
        return get(f"{self.neuron_url}/health")

    def generated(self):
        rows = self.health()["models"]
        return next(row["tokens_total"] for row in rows if row["id"] == MODEL)

    def in_flight(self):
        return sum(row["in_flight"] for row in self.health()["models"])

    def post(self, path, body):
        request = urllib.request.Request(
            self.gateway_url + path, json.dumps(body).encode(), method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def metric(self, name):
        url = re.search(r"metrics on (\S+)", self.gateway.log.read_text())[1]
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.fixture(scope="module")
def fleet(built, model_cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fleet")
    env = {"HOME": str(folder), "CORTEX_CACHE": str(model_cache)}
    env["SHIV_ROOT"] = str(built.pyz.parent / "shiv")
    (folder / "neuron.toml").write_text(NEURON_TOML)
    (folder / "models.toml").write_text(MODELS_TOML)
    pyz = [sys.executable, str(built.pyz)]
    neuron_command = [*pyz, "neuron", "--config", str(folder / "neuron.toml")]
    with running(neuron_command, folder / "neuron.log", **env) as neuron:
        toml = CORTEX_TOML.format(neuron=neuron.url())
        (folder / "cortex.toml").write_text(toml)
        serve_command = [*pyz, "serve", "--config", str(folder / "cortex.toml")]
        with running(serve_command, folder / "serve.log", **env) as gateway:
            fleet = Fleet(gateway, neuron)
            yield fleet
            fleet.client.close()
            workers = descendants(neuron.process.pid)
            assert workers
            assert gateway.stop() == 0
            assert neuron.stop() == 0
            for pid in workers:
                with pytest.raises(ProcessLookupError):
                    os.kill(pid, 0)


def test_the_first_request_loads_the_model_and_streams_an_answer_whose_usage_adds_up(fleet):
    assert fleet.model() is None
    stream = fleet.ask(stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert "Paris" in text
    finish = [c.choices[0].finish_reason for c in chunks if c.choices][-1]
    assert finish == "stop"
    usage = chunks[-1].usage
    assert usage.prompt_tokens > 20
    assert usage.completion_tokens == fleet.generated() + 1  # the end token is no text
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    counted = fleet.metric("cortex_completion_tokens_total")
    assert counted == usage.completion_tokens
    assert fleet.metric("cortex_cold_starts_total") == 1
    assert fleet.model()["status"] == "loaded"


def test_whole_and_streamed_answers_are_the_same_and_so_is_the_alias(fleet):
    whole = fleet.ask()
    streamed = "".join(c.choices[0].delta.content or "" for c in fleet.ask(stream=True))
    assert whole.choices[0].message.content == streamed
    alias = fleet.client.chat.completions.create(
        model="small", messages=CAPITAL, temperature=0, max_tokens=64
    )
    assert alias.choices[0].message.content == streamed


def test_every_dialect_gets_the_same_text(fleet):
    chat = fleet.ask(stream=True, stream_options={"include_usage": True})
    *chunks, last = list(chat)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    by_responses = fleet.client.responses.create(
        model=MODEL, input=CAPITAL, temperature=0, max_output_tokens=64
    )
    with anthropic.Anthropic(base_url=fleet.gateway_url, api_key="none", timeout=120) as claude:
        asked = {"model": MODEL, "messages": CAPITAL}
        with claude.messages.stream(
            **asked, max_tokens=64, extra_body={"temperature": 0}
        ) as stream:
            by_messages = stream.get_final_message()
        counted = claude.messages.count_tokens(**asked).input_tokens

    assert by_responses.output_text == by_messages.content[0].text == text
    assert by_responses.usage.input_tokens == counted == last.usage.prompt_tokens
    assert by_messages.usage.output_tokens == last.usage.completion_tokens
    assert by_messages.stop_reason == "end_turn"


def test_a_bare_prompt_is_gone_on_from(fleet):
    answer = fleet.client.completions.create(
        model=MODEL, prompt="The capital of France is", temperature=0, max_tokens=8
    )

    assert "Paris" in answer.choices[0].text
    assert answer.choices[0].finish_reason == "length"


def test_two_requests_at_once_are_both_answered(fleet):
    with ThreadPoolExecutor() as pool:
        both = pool.map(lambda _: fleet.ask().choices[0].message.content, range(2))
        first, second = both
    assert first == second
    assert "Paris" in first


def test_unload_frees_the_model_and_the_next_request_loads_it_again(fleet):
    assert fleet.post(f"/api/v1/models/{MODEL}/unload", {})["status"] == "unloaded"
    assert fleet.model() is None
    assert "Paris" in fleet.ask().choices[0].message.content
    assert fleet.metric("cortex_cold_starts_total") == 2


def test_a_client_that_leaves_stops_the_generation_within_two_tokens(fleet):
    before = fleet.generated()
    stream = fleet.ask(LONG, stream=True, max_tokens=2000)
    seen = 0
    for chunk in stream:
        seen += bool(chunk.choices and chunk.choices[0].delta.content)
        if seen == 10:
            break
    stream.close()
    until(lambda: not fleet.in_flight(), 10)
    stopped_at = fleet.generated()
    assert stopped_at - before <= seen + 2
    fleet.ask(max_tokens=1)  # the engine is free, and made nothing for the one that left
    assert fleet.generated() <= stopped_at + 1 + 2


def test_a_killed_worker_is_an_error_in_the_stream_and_the_next_request_succeeds(fleet):
    stream = iter(fleet.ask(LONG, stream=True, max_tokens=2000))
    for _ in range(5):
        next(stream)
    (worker,) = descendants(fleet.neuron.process.pid)
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="died"):
        list(stream)
    until(lambda: fleet.health()["devices"][0]["state"] == "recovering", 10)
    assert fleet.neuron.process.poll() is None
    assert "Paris" in fleet.ask().choices[0].message.content  # held until the model is back
    until(lambda: fleet.health()["devices"][0]["state"] == "ok", 60)


def test_what_is_wrong_with_a_request_is_the_sdk_exception_its_users_expect(fleet):
    with pytest.raises(openai.NotFoundError, match="did you mean 'small'"):
        fleet.client.chat.completions.create(model="smal", messages=CAPITAL)
    with pytest.raises(openai.BadRequestError) as caught:
        fleet.ask([{"role": "user", "content": "word " * 9000}])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.UnprocessableEntityError, match="tools"):
        fleet.ask(tools=[{"type": "function", "function": {"name": "f"}}])


def test_models_are_listed_and_told(fleet):
    listed = {model.id: model for model in fleet.client.models.list()}
    assert set(listed) == {MODEL, "small"}
    assert listed[MODEL].loaded is True
    assert fleet.client.models.retrieve("small").alias_of == MODEL
