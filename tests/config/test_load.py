"""Every mistake in a configuration is said with its file and key path, and what was meant."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cortex.config.load import load_gateway, load_neuron
from cortex.config.schema import Address
from cortex.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]
NEURON = '[[neurons]]\nname = "a"\nendpoint = "http://h:1"\n'
KNOWN = "known: listen, metrics_listen, models_config, dialects, drain_s, state_path, tls"
DIGEST = 64 * "0"
EXPECTED = "expected http://host:port, got"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path) -> None:
    for name in [n for n in os.environ if n.startswith(("CORTEX_", "NEURON_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def write(folder: Path, cortex: str = "", models: str = "") -> Path:
    (folder / "models.toml").write_text(models)
    path = folder / "cortex.toml"
    path.write_text(cortex)
    return path


CORTEX = {
    "x = ": "line 1, column 0: Unexpected end of file",
    "[gateway\n": "line 1, column 8: Unexpected character: '\\n'",
    "a = 1\na = 2": 'line 2, column 0: Key "a" already exists.',
    "gatway = 1": "gatway: unknown key (did you mean 'gateway'?)",
    "zzz = 1": (
        "zzz: unknown key (known: gateway, routing, eviction, queue, replies, auth, ledger, audit,"
        " tracing, neurons, upstreams, plugins)"
    ),
    "gateway = 3": "gateway: expected a table, got 3 (a whole number)",
    "gateway = []": "gateway: expected a table, got a list",
    "[gateway]\nlisen = 'x'": "gateway.lisen: unknown key (did you mean 'listen'?)",
    "[gateway]\nx = 1": f"gateway.x: unknown key ({KNOWN})",
    "[gateway]\nlisten = 3": "gateway.listen: expected a string, got 3 (a whole number)",
    "[gateway]\nlisten = 'nope'": "gateway.listen: expected host:port, got 'nope'",
    "[gateway]\nlisten = 'h:70000'": "gateway.listen: expected host:port, got 'h:70000'",
    "[gateway]\nmodels_config = 3": (
        "gateway.models_config: expected a string, got 3 (a whole number)"
    ),
    "[gateway]\ndialects = 'x'": "gateway.dialects: expected a list, got 'x' (a string)",
    "[gateway]\ndialects = [1]": ("gateway.dialects[0]: expected a string, got 1 (a whole number)"),
    "[routing]\nstrategy = true": "routing.strategy: expected a string, got true or false",
    "[auth]\nrequire = true": (
        "auth.require: no key is configured, so nobody could be let in"
        " (cortex keys new NAME --admin)"
    ),
    "[[auth.keys]]\nname = 'a'": "auth.keys[0].sha256: missing",
    "[[auth.keys]]\nname = 'a'\nsha256 = 'abc'": (
        "auth.keys[0]: sha256: expected 64 hexadecimal digits in lower case, as"
        " `cortex keys new a` prints them"
    ),
    f"[[auth.keys]]\nname = ''\nsha256 = '{DIGEST}'": (
        "auth.keys[0]: name: expected 1 to 128 characters of ASCII, got ''"
    ),
    f"[[auth.keys]]\nname = \"a\\r\\nb\"\nsha256 = '{DIGEST}'": (
        "auth.keys[0]: name: expected 1 to 128 characters of ASCII, got 'a\\r\\nb'"
    ),
    f"[[auth.keys]]\nname = 'anonymous'\nsha256 = '{DIGEST}'": (
        "auth.keys[0].name: 'anonymous' is who has no key; see auth.anonymous"
    ),
    f"[[auth.keys]]\nname = 'a'\nsha256 = '{DIGEST}'\nmax_concurrency = 0": (
        "auth.keys[0]: max_concurrency: expected at least 1, got 0"
    ),
    f"[[auth.keys]]\nname = 'a'\nsha256 = '{DIGEST}'\nbudget_days = 400": (
        "auth.keys[0]: budget_days: expected 1 to 366, got 400"
    ),
    f"[[auth.keys]]\nname = 'a'\nsha256 = '{DIGEST}'\n" * 2: (
        "auth.keys[1].name: 'a' is taken by another key"
    ),
    f"[[auth.keys]]\nname = 'a'\nsha256 = '{DIGEST}'\n"
    f"[[auth.keys]]\nname = 'b'\nsha256 = '{DIGEST}'": (
        "auth.keys[1].sha256: is also that of another key"
    ),
    "[auth.anonymous]\ntokens_per_minute = 0": (
        "auth.anonymous: tokens_per_minute: expected at least 1, got 0"
    ),
    "[auth.anonymous]\nadmin = true": (
        "auth.anonymous.admin: unknown key (known: models, max_concurrency, requests_per_minute,"
        " tokens_per_minute, budget_tokens, budget_days, priority, weight)"
    ),
    "[queue]\nmax_depth = 'x'": ("queue.max_depth: expected a whole number, got 'x' (a string)"),
    "[queue]\nmax_depth = 1.5": ("queue.max_depth: expected a whole number, got 1.5 (a number)"),
    "[queue]\nmax_depth = true": ("queue.max_depth: expected a whole number, got true or false"),
    "[queue]\nmax_depth = 0": "queue.max_depth: expected at least 1, got 0",
    "[queue]\nmax_wait_s = -1": "queue.max_wait_s: expected at least 0, got -1",
    "[eviction]\nmin_residency_s = []": ("eviction.min_residency_s: expected a number, got a list"),
    "neurons = 3": "neurons: expected a list, got 3 (a whole number)",
    "[neurons]\nname = 'x'": (
        "neurons: expected a list, got a table (its name goes between [[ and ]])"
    ),
    "neurons = [1]": "neurons[0]: expected a table, got 1 (a whole number)",
    "[[neurons]]\nname = 'a'": "neurons[0].endpoint: missing",
    NEURON + "weight = 1": (
        "neurons[0].weight: unknown key (known: name, endpoint, token, ca, client_cert, client_key)"
    ),
    NEURON + "endpint = 1": "neurons[0].endpint: unknown key (did you mean 'endpoint'?)",
    NEURON + "token = 1": "neurons[0].token: expected a string, got 1 (a whole number)",
    NEURON * 2: "neurons[1].name: 'a' is taken by another node",
    NEURON.replace("http:", "ftp:"): f"neurons[0].endpoint: {EXPECTED} 'ftp://h:1'",
    NEURON.replace("http://", ""): f"neurons[0].endpoint: {EXPECTED} 'h:1'",
    NEURON.replace("h:1", "h:99999"): f"neurons[0].endpoint: {EXPECTED} 'http://h:99999'",
    NEURON.replace("h:1", "h:x"): f"neurons[0].endpoint: {EXPECTED} 'http://h:x'",
    NEURON.replace("h:1", "[h:1"): f"neurons[0].endpoint: {EXPECTED} 'http://[h:1'",
    "[plugins]\nblock = 'x'": "plugins.block: expected a list, got 'x' (a string)",
    "[plugins]\nonly = 'abc'": "plugins.only: expected a list, got 'abc' (a string)",
    "[plugins]\ndirectories = ['x', 1]": (
        "plugins.directories[1]: expected a string, got 1 (a whole number)"
    ),
    "[queue]\nmax_depth = 'x'\n[rooting]\n[gateway]\na = 1": (
        f"gateway.a: unknown key ({KNOWN});"
        " cortex.toml: queue.max_depth: expected a whole number, got 'x' (a string);"
        " cortex.toml: rooting: unknown key (did you mean 'routing'?)"
    ),
}


@pytest.mark.parametrize(("text", "message"), CORTEX.items())
def test_a_mistake_in_cortex_toml(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        load_gateway(write(tmp_path, text))

    assert str(caught.value) == f"cortex.toml: {message}"


MODEL = '[[models]]\nid = "a"\n'
MODELS = {
    "[[models]]\n": "models[0].id: missing",
    "[[models]]\nid = 1": "models[0].id: expected a string, got 1 (a whole number)",
    "[[models]]\nid = ''": "models[0].id: expected length at least 1, got 0",
    MODEL + "vram_mb = 'x'": "models[0].vram_mb: expected a whole number, got 'x' (a string)",
    MODEL + "vram = 1": "models[0].vram: unknown key (did you mean 'vram_mb'?)",
    MODEL + "vram_mb = -1": "models[0].vram_mb: expected at least 0, got -1",
    MODEL + "context = 0": "models[0].context: expected at least 1, got 0",
    MODEL + "min_devices = 0": "models[0].min_devices: expected at least 1, got 0",
    MODEL + "priority = true": ("models[0].priority: expected a whole number, got true or false"),
    MODEL + "pinned_on = 'x'": "models[0].pinned_on: expected a list, got 'x' (a string)",
    MODEL + "pinned_on = [1]": (
        "models[0].pinned_on[0]: expected a string, got 1 (a whole number)"
    ),
    MODEL + "defaults = 3": "models[0].defaults: expected a table, got 3 (a whole number)",
    MODEL + "defaults = {temperature = 'hot'}": (
        "models[0].defaults['temperature']: expected a number, got 'hot' (a string)"
    ),
    MODEL + "defaults = {repetition_penalty = 0}": (
        "models[0]: defaults: repetition_penalty: expected 1e-09 to 10, got 0"
    ),
    MODEL * 2: "models: 'a' is listed twice",
    "models = 'x'": "models: expected a list, got 'x' (a string)",
    "aliases = 'x'": "aliases: expected a table, got 'x' (a string)",
    "[aliases]\na = 1": "aliases['a']: expected a string, got 1 (a whole number)",
    MODEL + "[aliases]\na = 'b'": "aliases.a: is also the id of a model",
    "[alias]\n": "alias: unknown key (did you mean 'aliases'?)",
    "x = [": "line 1, column 0: Unexpected end of file",
}


@pytest.mark.parametrize(("text", "message"), MODELS.items())
def test_a_mistake_in_models_toml(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        load_gateway(write(tmp_path, models=text))

    assert str(caught.value) == f"models.toml: {message}"


NODE = {
    "listen = 'x'": "listen: expected host:port, got 'x'",
    "token = 1": "token: expected a string, got 1 (a whole number)",
    "[[default_models]]\nmodel_id = 'x'\ncontext = 0": (
        "default_models[0].context: expected at least 1, got 0"
    ),
    "default_models = [3]": "default_models[0]: expected a table, got 3 (a whole number)",
    "[[default_models]]\nmodel = 'x'": (
        "default_models[0].model_id: missing;"
        " neuron.toml: default_models[0].model: unknown key (did you mean 'model_id'?)"
    ),
    "harness = 3": "harness: expected a table, got 3 (a whole number)",
    "[harness]\necho = 3": "harness['echo']: expected a table, got 3 (a whole number)",
    "harnesses = 'x'": "harnesses: expected a list, got 'x' (a string)",
    "[sources]\nhf = 1": "sources['hf']: expected a table, got 1 (a whole number)",
    "lisen = 1": "lisen: unknown key (did you mean 'listen'?)",
}


@pytest.mark.parametrize(("text", "message"), NODE.items())
def test_a_mistake_in_neuron_toml(tmp_path, text, message):
    path = tmp_path / "neuron.toml"
    path.write_text(text)

    with pytest.raises(ConfigError) as caught:
        load_neuron(path)

    assert str(caught.value) == f"neuron.toml: {message}"


def test_a_file_that_is_not_there_is_named(tmp_path):
    for load in (load_gateway, load_neuron):
        with pytest.raises(ConfigError) as caught:
            load(tmp_path / "absent.toml")
        assert str(caught.value) == f"{tmp_path}/absent.toml: no such file"


def test_a_catalogue_that_is_not_there_is_never_an_empty_one(tmp_path):
    path = write(tmp_path, "[gateway]\nmodels_config = 'absent.toml'")

    with pytest.raises(ConfigError) as caught:
        load_gateway(path)

    assert str(caught.value) == (
        f"cortex.toml: gateway.models_config: no file {tmp_path}/absent.toml"
        " (make it, it may be empty, or name another)"
    )


def test_a_folder_or_bytes_in_place_of_a_file_are_said(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_gateway(tmp_path)
    assert str(caught.value) == f"{tmp_path}: Is a directory"

    path = tmp_path / "cortex.toml"
    path.write_bytes(b"x = '\xff'")
    with pytest.raises(ConfigError, match="can't decode byte 0xff"):
        load_gateway(path)


def test_everything_has_a_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    config, catalogue = load_gateway(None)

    assert config.gateway.listen == Address("0.0.0.0", 31313)
    assert (config.routing.strategy, config.eviction.strategy) == ("least-loaded", "lru")
    assert (catalogue.models, dict(catalogue.aliases)) == ((), {})
    assert load_neuron(None).listen == Address("0.0.0.0", 13131)


def test_a_whole_file_is_read(tmp_path):
    models = (
        '[[models]]\nid = "org/a"\nvram_mb = 100\npinned_on = ["x"]\ndefaults = {top_p = 1}\n'
        '[aliases]\nsmall = "org/a"\n'
    )
    path = write(tmp_path, '[gateway]\nlisten = "[::1]:5"\n[plugins]\ndirectories = ["p"]', models)

    config, catalogue = load_gateway(path)

    assert str(config.gateway.listen) == "[::1]:5"
    assert config.gateway.listen.is_loopback
    assert config.plugins.directories == (tmp_path / "p",)
    [model] = catalogue.models
    assert (model.id, model.pinned_on, model.defaults) == ("org/a", ("x",), {"top_p": 1.0})
    assert catalogue.aliases == {"small": "org/a"}


def test_kept_answers_have_a_place_whatever_the_files_say(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    (tmp_path / "neuron.toml").write_text('[replies]\npath = "x.db"\nmax_count = 0\n')

    assert load_gateway(None)[0].replies.path == Path("/state/cortex/gateway-replies.db")
    assert load_neuron(None).replies.path == Path("/state/cortex/neuron-replies.db")
    assert load_neuron(tmp_path / "neuron.toml").replies.path == tmp_path / "x.db"

    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    path = load_gateway(None)[0].replies.path
    assert path == Path("/home/me/.local/state/cortex/gateway-replies.db")


ENVIRONMENT = [
    ("CORTEX_GATEWAY__LISTEN", "127.0.0.1:5", lambda c: str(c.gateway.listen), "127.0.0.1:5"),
    ("CORTEX_QUEUE__MAX_DEPTH", "7", lambda c: c.queue.max_depth, 7),
    ("CORTEX_QUEUE__MAX_WAIT_S", "5", lambda c: c.queue.max_wait_s, 5.0),
    ("CORTEX_ROUTING__STRATEGY", "round-robin", lambda c: c.routing.strategy, "round-robin"),
    ("CORTEX_ROUTING__STRATEGY", "7", lambda c: c.routing.strategy, "7"),
    ("CORTEX_GATEWAY__DIALECTS", '["a"]', lambda c: c.gateway.dialects, ("a",)),
    ("CORTEX_PLUGINS__BLOCK", '["a"]', lambda c: c.plugins.block, ("a",)),
    ("CORTEX_PLUGINS", "a, b", lambda c: c.plugins.only, {"a", "b"}),
    ("CORTEX_PLUGINS", "", lambda c: c.plugins.only, set()),
    ("CORTEX_URL", "not ours", lambda c: c.queue.max_depth, 512),
]


@pytest.mark.parametrize(("name", "value", "read", "expected"), ENVIRONMENT)
def test_the_environment_has_the_last_word(tmp_path, monkeypatch, name, value, read, expected):
    path = write(tmp_path, "[queue]\nmax_wait_s = 1\n")
    monkeypatch.setenv(name, value)

    assert read(load_gateway(path)[0]) == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("CORTEX_GATEWAY__LISEN", "x", "cortex.toml: gateway.lisen: unknown key"),
        ("CORTEX_QUEUE__MAX_DEPTH", "x", "cortex.toml: queue.max_depth: expected a whole number"),
        ("CORTEX_GATEWAY", "x", "cortex.toml: gateway: expected a table, got 'x' (a string)"),
        (
            "CORTEX_NEURONS__0__NAME",
            "x",
            "CORTEX_NEURONS__0__NAME: neurons is no table, but a list",
        ),
    ],
)
def test_a_mistake_in_the_environment(tmp_path, monkeypatch, name, value, message):
    path = write(tmp_path, NEURON)
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError) as caught:
        load_gateway(path)

    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "endpoint", "service"),
    [
        ("", "http://env:4318", "fleet"),
        ('endpoint = "http://file:4318"\nservice = "mine"', "http://file:4318", "mine"),
    ],
)
def test_opentelemetrys_own_variables_count_where_the_file_says_nothing(
    tmp_path, monkeypatch, text, endpoint, service
):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://env:4318")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "fleet")
    path = write(tmp_path, f"[tracing]\n{text}\n")

    for tracing in (load_gateway(path)[0].tracing, load_neuron(path).tracing):
        assert (tracing.endpoint, tracing.service) == (endpoint, service)


@pytest.mark.parametrize(
    ("text", "variable", "message"),
    [
        (
            'endpoint = "collector:4318"',
            "",
            "cortex.toml: tracing.endpoint: expected http://host:port, got 'collector:4318'",
        ),
        ("sample = 1.5", "", "cortex.toml: tracing.sample: expected 0 to 1, got 1.5"),
        (
            "",
            "collector",
            "OTEL_EXPORTER_OTLP_ENDPOINT: expected http://host:port, got 'collector'",
        ),
    ],
)
def test_a_mistake_in_what_is_to_be_traced(tmp_path, monkeypatch, text, variable, message):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", variable)
    path = write(tmp_path, f"[tracing]\n{text}\n")

    with pytest.raises(ConfigError) as caught:
        load_gateway(path)

    assert str(caught.value) == message


@pytest.mark.parametrize("value", ["123", "true", "[x", "a b"])
def test_a_token_of_the_environment_is_text_whatever_it_looks_like(monkeypatch, value):
    monkeypatch.setenv("NEURON_TOKEN", value)

    assert load_neuron(None).token == value


@pytest.mark.parametrize("command", ["serve", "neuron"])
def test_a_bad_file_ends_a_program_with_2_and_a_line_a_mistake(tmp_path, command):
    path = tmp_path / "bad.toml"
    path.write_text("lisen = 1")

    done = subprocess.run(
        [sys.executable, "-m", "cortex", command, "--config", str(path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "CORTEX_PLUGINS": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"cortex {command}: bad.toml: lisen: unknown key (")
    lines = done.stderr.splitlines()
    assert len(lines) == (2 if command == "serve" else 1)  # a gateway misses its catalogue, too
    assert all(line.startswith(f"cortex {command}: bad.toml: ") for line in lines)
