"""The documents build, and what they show works."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import attrs
import pytest

from cortex.chat.request import RequestHead
from cortex.config.load import load_gateway, load_neuron
from cortex.config.schema import Address, Catalogue, GatewayConfig, NeuronConfig, PluginSettings
from cortex.config.strict import structure
from cortex.fleet.model import Candidate
from cortex.plugins import Plugins

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PLUGIN_PAGE = ROOT / "docs" / "writing-a-plugin.md"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("CORTEX_PLUGINS", raising=False)


@pytest.mark.timeout(120)
def test_the_documents_build_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-n", "-W", "--keep-going", "-q", "-b", "html"]
    built = subprocess.run(
        [*command, "-d", tmp_path / "doctrees", ROOT / "docs", tmp_path / "html"],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "html" / "index.html").exists()


def test_every_picture_is_shown_and_every_one_shown_exists():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = {
        (page.parent / path).resolve()
        for page in pages
        for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text("utf-8"))
    }
    assert shown == {path.resolve() for path in (ROOT / "docs" / "pictures").iterdir()}


# The examples.


def test_the_gateways_examples_load():
    config, catalogue = load_gateway(EXAMPLES / "cortex.toml")
    assert [neuron.name for neuron in config.neurons] == ["beast"]
    assert catalogue.aliases["small"] in {model.id for model in catalogue.models}


def test_the_neurons_example_loads_with_the_options_of_its_harnesses_and_sources():
    config = load_neuron(EXAMPLES / "neuron.toml")
    plugins = Plugins(config.plugins)
    for kind, tables in (("harness", config.harness), ("source", config.sources)):
        for name, table in tables.items():
            offer = plugins.choose(kind, name, "neuron.toml")
            assert structure(table, offer.options, name) == offer.options()


@pytest.mark.parametrize("name", ["cortex.toml", "models.toml", "neuron.toml"])
def test_every_line_commented_out_in_an_example_may_be_used(name, tmp_path):
    """With all its ``# key = value`` lines switched on, a file still loads."""
    for file in EXAMPLES.glob("*.toml"):
        (tmp_path / file.name).write_text(file.read_text("utf-8"), "utf-8")
    used = re.sub(r"(?m)^# (?=\[|\w+ = )", "", (EXAMPLES / name).read_text("utf-8"))
    (tmp_path / name).write_text(used, "utf-8")
    if name == "neuron.toml":
        config = load_neuron(tmp_path / name)
        plugins = Plugins(PluginSettings(only=frozenset()))
        for kind, tables in (("harness", config.harness), ("source", config.sources)):
            for offer in tables:
                structure(tables[offer], plugins.choose(kind, offer, name).options, name)
    else:
        config, catalogue = load_gateway(tmp_path / "cortex.toml")
        assert len(config.neurons) + len(catalogue.models) == 3 + (name == "models.toml")


def keys_of(kind: type) -> set[str]:
    """Return the keys of a table and of those in it; an address is a string there."""
    found = set()
    for field in attrs.fields(attrs.resolve_types(kind)):
        found.add(field.name)
        within = [field.type, *get_args(field.type)]
        within += [each for outer in within[1:] for each in get_args(outer)]
        for table in within:
            if attrs.has(table) and table is not Address:
                found |= keys_of(table)
    return found


@pytest.mark.parametrize(
    ("name", "kind"),
    [("cortex.toml", GatewayConfig), ("models.toml", Catalogue), ("neuron.toml", NeuronConfig)],
)
def test_an_example_has_every_key_there_is(name, kind):
    keys = keys_of(kind)
    if kind is NeuronConfig:
        plugins = Plugins(PluginSettings(only=frozenset()))
        for offer in (*plugins.offers("harness"), *plugins.offers("source")):
            keys |= keys_of(offer.options) if offer.options else set()
    text = (EXAMPLES / name).read_text("utf-8")
    assert not {key for key in keys if not re.search(rf"\b{key}(?: =|[\].])", text)}


# The plugin.


def install(folder: Path) -> None:
    """Put the example where pip would, with the entry point its own first lines ask for."""
    text = (EXAMPLES / "cortex_sticky.py").read_text("utf-8")
    (folder / "cortex_sticky.py").write_text(text, "utf-8")
    name, version = re.findall(r'(?:name|version) = "(.+)"', text)[:2]
    entry = re.findall(r'^    (\w+) = "(cortex_sticky)"$', text, re.MULTILINE)[0]
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[cortex]\n{entry[0]} = {entry[1]}\n")


@pytest.fixture
def sticky(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "plugins").mkdir()
    install(tmp_path / "plugins")
    yield tmp_path / "plugins"
    sys.modules.pop("cortex_sticky", None)


def test_the_plugin_is_found_and_chosen_by_name(sticky):
    plugins = Plugins(PluginSettings(directories=(sticky,), only=frozenset({"sticky"})))
    assert plugins.failures == []
    assert plugins.distribution("sticky") == "cortex-sticky"

    strategy = plugins.choose("routing strategy", "sticky", "cortex.toml").build()

    def choose(**in_flight: int) -> str:
        candidates = [Candidate(node=name, in_flight=n) for name, n in in_flight.items()]
        return strategy.choose(RequestHead(id="1", model="m"), candidates).node

    assert choose(a=1, b=0) == "b"
    assert choose(a=0, b=3) == "b"
    assert choose(a=0, b=5) == "a"


def test_the_page_shows_the_plugin_itself_and_its_session_is_true(sticky):
    page = PLUGIN_PAGE.read_text("utf-8")
    assert "```{literalinclude} ../examples/cortex_sticky.py\n" in page
    assert "```python" not in page
    assert "```py\n" not in page
    session = "\n".join(re.findall(r"```pycon\n(.*?)```", page, re.DOTALL))
    sys.path.append(str(sticky))
    test = doctest.DocTestParser().get_doctest(session, {}, "page", str(PLUGIN_PAGE), 0)
    said: list[str] = []
    ran = doctest.DocTestRunner().run(test, out=said.append)
    assert ran.attempted
    assert not ran.failed, "".join(said)
