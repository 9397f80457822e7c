"""A plugin that cannot be used is kept as a failure with its cause, and takes nobody down."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

import cortex
from cortex.config.load import load_gateway
from cortex.config.schema import PluginSettings
from cortex.errors import ConfigError, RepoFetchFailed
from cortex.fleet.model import ModelSpec
from cortex.plugins import BUILTINS, Plugins

REPOSITORY = Path(__file__).parents[1]


def offering(*names: str, options: str = "") -> str:
    calls = "\n    ".join(f"register({name!r}, object)" for name in names)
    return f"""
import cortex

@cortex.hookimpl{options}
def cortex_register_routing_strategies(register):
    {calls}
"""


class Site:
    """A folder with installed plugins, as pip would leave them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def install(self, name: str, source: str, distribution: str | None = None) -> None:
        distribution = distribution or f"cortex-{name}"
        module = f"plugin_{uuid.uuid4().hex}"  # what was imported once stays imported
        (self.folder / f"{module}.py").write_text(source)
        info = self.folder / f"{module}-1.0.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        (info / "METADATA").write_text(metadata)
        (info / "entry_points.txt").write_text(f"[cortex]\n{name} = {module}\n")

    def plugins(self, *only: str, **more) -> Plugins:
        settings = PluginSettings(directories=(self.folder,), only=frozenset(only), **more)
        return Plugins(settings)


@pytest.fixture
def site(tmp_path, monkeypatch) -> Site:
    monkeypatch.setattr(sys, "path", list(sys.path))
    return Site(tmp_path / "installed")


def failures(plugins: Plugins) -> list[str]:
    return [str(failure) for failure in plugins.failures]


def test_built_ins_alone_offer_what_is_documented(site):
    plugins = site.plugins()

    assert plugins.loaded() == list(BUILTINS)
    assert plugins.failures == []
    offers = {kind: [o.name for o in plugins.offers(kind)] for kind in ("dialect", "source")}
    assert offers == {
        "dialect": [
            "openai-chat",
            "openai-completions",
            "openai-embeddings",
            "anthropic-messages",
            "openai-responses",
        ],
        "source": ["package", "file", "hf"],
    }


def test_a_plugin_is_loaded_and_its_offer_can_be_chosen(site):
    site.install("good", offering("newest"))
    plugins = site.plugins("good")

    offer = plugins.choose("routing strategy", "newest", "cortex.toml: routing.strategy")

    assert (offer.plugin, plugins.distribution("good")) == ("good", "cortex-good")
    assert plugins.loaded()[-1] == "good"


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("raise RuntimeError('no libfoo.so')", "RuntimeError: no libfoo.so"),
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
        ("import nothing_like_it", "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("x =", "SyntaxError: invalid syntax"),
    ],
)
def test_an_import_that_breaks_is_a_failure_with_its_cause(site, source, cause):
    site.install("bad", source)
    site.install("good", offering("newest"))

    plugins = site.plugins("bad", "good")

    [failure] = failures(plugins)
    assert failure.startswith(f"plugin 'bad' (cortex-bad): {cause}")
    assert "good" in plugins.loaded()
    assert "bad" not in plugins.loaded()


def test_an_unknown_hook_is_a_failure(site):
    site.install("bad", offering("x").replace("strategies(", "strategys("))

    plugins = site.plugins("bad")

    assert failures(plugins) == [
        (
            "plugin 'bad' (cortex-bad): unknown hook 'cortex_register_routing_strategys'"
            " (did you mean 'cortex_register_routing_strategies'?)"
        )
    ]
    assert "bad" not in plugins.loaded()


def test_an_unknown_argument_is_a_failure_that_names_it(site):
    site.install("bad", offering("x").replace("(register)", "(register, wrong)"))

    assert failures(site.plugins("bad")) == [
        (
            "plugin 'bad' (cortex-bad): hook cortex_register_routing_strategies:"
            " Argument(s) {'wrong'} are declared in the hookimpl"
            " but can not be found in the hookspec"
        )
    ]


def test_a_name_a_built_in_has_stays_the_built_ins(site):
    site.install("greedy", offering("mine", "least-loaded", "never-reached"))
    plugins = site.plugins("greedy")

    offers = plugins.offers("routing strategy")

    assert offers["least-loaded"].plugin == "cortex.routing.least_loaded"
    names = ["least-loaded", "prefix-affinity", "round-robin", "mine"]
    assert [offer.name for offer in offers] == names
    assert failures(plugins) == [
        (
            "plugin 'greedy' (cortex-greedy): routing strategy 'least-loaded'"
            " is already offered by cortex.routing.least_loaded"
        )
    ]


@pytest.mark.parametrize("options", ["(trylast=True)", "(tryfirst=True)"])
def test_a_name_a_built_in_has_cannot_be_taken_by_being_asked_earlier(site, options):
    site.install("greedy", offering("least-loaded", options=options))
    plugins = site.plugins("greedy")

    offers = plugins.offers("routing strategy")

    assert offers["least-loaded"].plugin == "cortex.routing.least_loaded"
    assert len(plugins.failures) == 1


def test_of_two_plugins_with_one_offer_the_first_by_name_has_it(site):
    site.install("b-second", offering("newest"))
    site.install("a-first", offering("newest"))
    plugins = site.plugins("a-first", "b-second")

    assert plugins.offers("routing strategy")["newest"].plugin == "a-first"
    assert failures(plugins) == [
        (
            "plugin 'b-second' (cortex-b-second): routing strategy 'newest'"
            " is already offered by a-first"
        )
    ]


def test_of_two_plugins_with_one_name_one_is_used_and_the_other_is_said(site):
    site.install("same", offering("one"), "cortex-one")
    site.install("same", offering("two"), "cortex-two")

    plugins = site.plugins("same")

    used = plugins.distribution("same")
    left = ({"cortex-one", "cortex-two"} - {used}).pop()
    assert failures(plugins) == [
        f"plugin 'same' ({left}): the name is taken by the plugin of {used}"
    ]


@pytest.mark.parametrize("kind", ["ValueError", "SystemExit"])
def test_a_register_hook_that_raises_is_a_failure(site, kind):
    raises = f"raise {kind}('boom')"
    site.install("bad", offering("one").replace("register('one', object)", raises))
    plugins = site.plugins("bad")

    assert "one" not in plugins.offers("routing strategy")
    assert failures(plugins) == [f"plugin 'bad' (cortex-bad): {kind}: boom"]


def test_a_blocked_plugin_is_not_even_imported(site):
    site.install("bad", "raise RuntimeError('imported')")

    plugins = site.plugins("bad", block=("bad", "cortex.eviction.priority"))

    assert plugins.failures == []
    assert [offer.name for offer in plugins.offers("eviction policy")] == ["lru"]


def test_a_required_plugin_that_failed_is_an_error_with_its_cause(site):
    site.install("bad", "raise RuntimeError('no libfoo.so')")

    with pytest.raises(ConfigError) as caught:
        site.plugins("bad", require=("bad",))

    assert str(caught.value) == (
        "plugins.require: plugin 'bad' (cortex-bad): RuntimeError: no libfoo.so"
    )


def test_a_required_plugin_that_lost_its_offer_is_an_error(site):
    site.install("greedy", offering("lru-2", "least-loaded"))

    with pytest.raises(ConfigError, match="is already offered by"):
        site.plugins("greedy", require=("greedy",))


def test_a_required_plugin_that_is_not_there_is_an_error_with_the_nearest(site):
    site.install("good", offering("newest"))

    with pytest.raises(ConfigError) as caught:
        site.plugins("good", require=("goood",))

    assert str(caught.value) == (
        "plugins.require: no plugin is called 'goood' (did you mean 'good'?)"
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [("", []), ("good", ["good"]), (" good , other ", ["good", "other"]), ("nobody", [])],
)
def test_cortex_plugins_says_which_are_loaded(site, monkeypatch, tmp_path, value, expected):
    site.install("good", offering("newest"))
    site.install("other", offering("oldest"))
    monkeypatch.setenv("CORTEX_PLUGINS", value)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    (tmp_path / "models.toml").write_text("")
    path = tmp_path / "cortex.toml"
    path.write_text('[plugins]\ndirectories = ["installed"]\n')

    plugins = Plugins(load_gateway(path)[0].plugins)

    assert plugins.loaded()[len(BUILTINS) :] == expected


def test_a_choice_nobody_offers_names_the_failure_that_may_be_why(site):
    site.install("newest", "raise RuntimeError('no libfoo.so')")
    plugins = site.plugins("newest")

    with pytest.raises(ConfigError) as caught:
        plugins.choose("routing strategy", "newest", "cortex.toml: routing.strategy")

    assert str(caught.value) == (
        "cortex.toml: routing.strategy: routing strategy 'newest' is not there, because"
        " plugin 'newest' (cortex-newest): RuntimeError: no libfoo.so"
    )


def test_a_choice_that_is_misspelt_is_answered_with_the_nearest(site):
    with pytest.raises(ConfigError) as caught:
        site.plugins().choose("eviction policy", "lrru", "cortex.toml: eviction.strategy")

    assert str(caught.value) == (
        "cortex.toml: eviction.strategy: no eviction policy is called 'lrru' (did you mean 'lru'?)"
    )


def test_a_source_nobody_knows_is_said_with_examples(site, tmp_path):
    with pytest.raises(RepoFetchFailed, match="no source knows the model 'x'"):
        site.plugins().source_of(ModelSpec(id="x"), {}, "neuron.toml", tmp_path)


class Listener:
    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.heard: list[object] = []

    @cortex.hookimpl
    def cortex_on_node_changed(self, node, healthy):
        self.heard.append((node, healthy))
        if self.error is not None:
            raise self.error


def test_notify_drops_what_one_raises_and_tells_the_others(site, caplog):
    plugins = site.plugins()
    listeners = [Listener(), Listener(ValueError("boom")), Listener(SystemExit(1)), Listener()]
    for number, listener in enumerate(listeners):
        plugins.manager.register(listener, f"listener{number}")

    plugins.notify("cortex_on_node_changed", node="beast", healthy=False)

    assert [listener.heard for listener in listeners] == [[("beast", False)]] * 4
    logged = [r.getMessage() for r in caplog.records if r.name == "cortex.plugins"]
    assert sorted(logged) == [
        "plugin listener1: cortex_on_node_changed raised",
        "plugin listener2: cortex_on_node_changed raised",
    ]


def test_notify_gives_a_plugin_the_arguments_it_wants(site):
    class Curt:
        heard: list[str] = []  # noqa: RUF012

        @cortex.hookimpl
        def cortex_on_node_changed(self, node):
            self.heard.append(node)

    plugins = site.plugins()
    plugins.manager.register(Curt())
    plugins.notify("cortex_on_node_changed", node="beast", healthy=True)

    assert Curt.heard == ["beast"]


def serve(config: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cortex", "serve", "--config", str(config)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "XDG_DATA_HOME": str(config), **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=25,
    )


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ('require = ["bad"]', "plugins.require: plugin 'bad' (cortex-bad): RuntimeError: boom"),
        (
            'require = ["absent"]',
            "plugins.require: no plugin is called 'absent' (known: ",
        ),
        (
            '[routing]\nstrategy = "bad"',
            (
                "cortex.toml: routing.strategy: routing strategy 'bad' is not there, because"
                " plugin 'bad' (cortex-bad): RuntimeError: boom"
            ),
        ),
    ],
)
def test_a_gateway_that_needs_a_broken_plugin_stops_with_one_sentence(
    site, tmp_path, extra, message
):
    site.install("bad", "raise RuntimeError('boom')")
    (tmp_path / "models.toml").write_text("")
    config = tmp_path / "cortex.toml"
    config.write_text(
        '[gateway]\nlisten = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\n'
        f'[plugins]\ndirectories = ["installed"]\n{extra}\n'
    )

    done = serve(config, CORTEX_PLUGINS="bad")

    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("cortex serve: ")]
    assert len(said) == 1
    assert said[0].startswith(f"cortex serve: {message}")
    assert "Traceback" not in done.stderr
