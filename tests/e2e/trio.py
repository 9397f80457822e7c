"""A gateway and three neurons, each a process of its own, and clients that ask all the time."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import sys
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import openai

from tests.e2e.programs import Program, until
from tests.neuron.serving import REPOSITORY

NEURONS = ("one", "two", "small")  # the last has SmolLM2 besides
ECHO, SMALL = "m", "smollm2-135m"
KEY = "sk-cortex-survivor"
CAPITAL = "What is the capital of France?"
NEURON = """
listen = "{listen}"
harnesses = {harnesses}
[[default_models]]
model_id = "m"
harness = "echo"
{more}
[harness.echo]
delay_s = 0.05
[harness.torch]
threads = 1  # other tests run beside these
"""
AND_SMALL = """
[[default_models]]
model_id = "smollm2-135m"
harness = "torch"
"""
GATEWAY = """
[gateway]
listen = "{listen}"
metrics_listen = "{host}:0"
drain_s = 1
[auth]
require = true
[[auth.keys]]
name = "survivor"
sha256 = "{sha256}"
admin = true
budget_tokens = 100_000_000
requests_per_minute = 100_000
"""
BOX = """
[[neurons]]
name = "{name}"
endpoint = "http://{endpoint}"
"""
MODELS = """
[[models]]
id = "m"
harness = "echo"
[[models]]
id = "smollm2-135m"
defaults = { temperature = 0.0 }
ttl_s = 1800
"""


class Trio:
    """All four programs; *hosts*, if any, is where, by the name of the program and of `clients`."""

    def __init__(self, folder, model_cache, hosts=None, **env):
        self.folder, self.hosts = folder, hosts
        self._more = {"gateway": env}
        self._env = {"HOME": str(folder), "CORTEX_CACHE": str(model_cache)}
        self._env["PYTHONPATH"] = str(REPOSITORY)
        self._starts = Counter()
        self.programs = {}
        self.listens = {
            name: f"{hosts[name].address}:13131" if hosts else "127.0.0.1:0"
            for name in (*NEURONS, "gateway")
        }
        self.pool = ThreadPoolExecutor(64, initializer=hosts and hosts["clients"].enter)
        (folder / "models.toml").write_text(MODELS)
        self.client = None

    def __enter__(self):
        try:
            self.start(*NEURONS)
            self.start("gateway")
            self.client = openai.OpenAI(
                base_url=f"{self.url}/v1", api_key=KEY, timeout=60, max_retries=0
            )
            self.until_whole()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.client is not None:
            self.client.close()
        for program in reversed(self.programs.values()):
            if program.process.poll() is None:
                program.stop()
        self.pool.shutdown()

    # Programs.

    def inside(self, name):
        """Return what a command begins with that is to run on the host of *name*."""
        return self.hosts[name].inside if self.hosts else []

    def start(self, *names):
        """Start these, at the addresses they had."""
        for name in names:
            self._configure(name)
            self._starts[name] += 1
            command = "serve" if name == "gateway" else "neuron"
            self.programs[name] = Program(
                [
                    *self.inside(name),
                    *(sys.executable, "-m", "cortex", command, "--config", f"{name}.toml"),
                ],
                self.folder / f"{name}-{self._starts[name]}.log",
                **self._env,
                **self._more.get(name, {}),
            )
        for name in names:
            self.listens[name] = self.programs[name].url().removeprefix("http://")

    def _configure(self, name):
        listen = self.listens[name]
        if name == "gateway":
            sha256 = hashlib.sha256(KEY.encode()).hexdigest()
            text = GATEWAY.format(listen=listen, host=listen.partition(":")[0], sha256=sha256)
            text += "".join(BOX.format(name=box, endpoint=self.listens[box]) for box in NEURONS)
        else:
            is_small = name == "small"
            more = {"harnesses": '["echo", "torch"]' if is_small else '["echo"]'}
            text = NEURON.format(listen=listen, more=AND_SMALL if is_small else "", **more)
        (self.folder / f"{name}.toml").write_text(text)

    def kill(self, name):
        self.programs[name].process.kill()
        self.programs[name].process.wait(10)

    def log(self, name="gateway"):
        """Return what a program has said since its last start."""
        return self.programs[name].log.read_text()

    @property
    def url(self):
        return f"http://{self.listens['gateway']}"

    # What they say.

    def get(self, url):
        """Return headers and body; asked as the clients do."""
        return self.pool.submit(fetch, url).result(30)

    def api(self, path):
        return json.loads(self.get(f"{self.url}/api/v1/{path}")[1])

    def metric(self, name, **labels):
        """Return the sum of a metric of the gateway's over all other labels; of a neuron's too."""
        url = re.search(r"metrics on (\S+)", self.log())[1]
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = [
            line
            for line in self.get(url)[1].decode().splitlines()
            if re.match(rf"{name}[ {{]", line) and all(label in line for label in wanted)
        ]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def up(self, *names):
        """Tell whether these are in service."""
        return all(self.metric("cortex_node_up", node=name) for name in names)

    def until_whole(self):
        """Wait until all are in service, and echo is loaded."""
        until(lambda: self.up(*NEURONS), 60, self.programs["gateway"], every_s=0.1)
        self.until_loaded(ECHO, len(NEURONS))

    def until_loaded(self, model, count=1):
        """Wait until this many nodes have a model; SmolLM2 loads on a core others want, too."""
        until(
            lambda: self.metric("cortex_model_loaded", model=model) == count,
            200,
            self.programs["small"],
            every_s=0.5,
        )

    # Clients.

    def begin(self, said, *, stream=True, model=ECHO, **more):
        """Ask in a thread of the clients'; return what becomes of it."""
        answer = Answer(said)
        answer.done = self.pool.submit(answer.fetch, self.client, model, stream, more)
        return answer

    def capital(self):
        """Return what SmolLM2 takes for the capital of France."""
        answer = self.begin(CAPITAL, model=SMALL, max_tokens=32, temperature=0)
        answer.done.result(60)
        assert answer.error is None
        return answer.text


def fetch(url):
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(asked, timeout=20) as answer:
        return answer.headers, answer.read()


class Answer:
    """
    What becomes of one request.

    Attributes:
        text: What has come of it.
        finished: Why it ended, if it ended cleanly.
        error: What its client was told or saw instead.
        took_s: How long all that took.
    """

    def __init__(self, said):
        self.said, self.text, self.finished, self.error = said, "", None, None
        self.done, self.took_s = None, 0.0

    def fetch(self, client, model, stream, more):
        began = time.monotonic()
        messages = [{"role": "user", "content": self.said}]
        try:
            answer = client.chat.completions.create(
                model=model, messages=messages, stream=stream, **more
            )
            if not stream:
                self.text = answer.choices[0].message.content
                self.finished = answer.choices[0].finish_reason
                return
            for chunk in answer:
                for choice in chunk.choices:
                    self.text += choice.delta.content or ""
                    self.finished = choice.finish_reason or self.finished
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.error = error
        finally:
            self.took_s = time.monotonic() - began

    @property
    def is_whole(self):
        """Whether it is what echo has to say, nothing twice and nothing left out."""
        return self.error is None and self.finished == "stop" and self.text == self.said

    @property
    def is_honest(self):
        """Whether it is whole, or broke off with an error of ours, behind nothing but its text."""
        told = isinstance(self.error, openai.APIError) and self.error.code and self.error.message
        return self.is_whole or bool(told and self.said.startswith(self.text))

    def __repr__(self):
        said, text, error = self.said[:9], self.text[-30:], self.error
        return f"<{said}: {len(self.text)}/{len(self.said)} {text!r} {self.finished} {error!r}>"


class Load:
    """Clients that ask echo again and again, until left; some want streams, some whole answers."""

    def __init__(self, trio, streams=6, others=3, words=30):
        self._trio, self._words = trio, words
        self._kinds = [True] * streams + [False] * others
        self._number = itertools.count()
        self._over = False
        self.answers = []

    def __enter__(self):
        self._clients = [self._trio.pool.submit(self._ask_on, kind) for kind in self._kinds]
        return self

    def __exit__(self, *_):
        self._over = True
        for client in self._clients:
            client.result(90)

    def _ask_on(self, stream):
        while not self._over:
            self.answers.append(answer := Answer(story(next(self._number), self._words)))
            answer.fetch(self._trio.client, ECHO, stream, {})
            if answer.error is not None:
                time.sleep(0.05)  # as a client would, and not as fast as it can

    @property
    def whole(self):
        """How many answers were whole."""
        return sum(answer.is_whole for answer in list(self.answers))

    def until_more(self, count=9, timeout_s=30):
        """Wait for *count* more whole answers."""
        wanted = self.whole + count
        until(lambda: self.whole >= wanted, timeout_s, self._trio.programs["gateway"])


def story(number, words):
    """Return words none of which is another."""
    return " ".join(f"{number}-{word}" for word in range(words))
