"""``cortex pull`` from a folder of this host, through the source a neuron would use."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest

from cortex.__main__ import main
from cortex.errors import ConfigError, RepoFetchFailed
from cortex.fleet.model import Checkpoint, ModelSpec, Progress
from cortex.plugins import Plugins


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "models" / "org" / "tiny.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"GGUF" + bytes(2044))
    return path


@pytest.fixture
def config(tmp_path, weights) -> Path:
    path = tmp_path / "neuron.toml"
    path.write_text(f'[sources.file]\npaths = ["{tmp_path / "models"}"]\n')
    return path


def test_the_first_source_that_knows_the_id_fetches_it(config, weights, capsys):
    assert main(["pull", "org/tiny", "--config", str(config)]) == 0

    assert capsys.readouterr() == (f"{weights}  2.0 KiB\n", "org/tiny: already here\n")


def test_the_neurons_file_of_this_folder_says_where_weights_are(
    config, weights, monkeypatch, capsys
):
    monkeypatch.chdir(config.parent)

    assert main(["pull", "org/tiny"]) == 0

    assert capsys.readouterr().out == f"{weights}  2.0 KiB\n"


def test_a_source_can_be_named_with_a_place(weights, capsys):
    assert main(["pull", "whatever", "--source", f"file:{weights}", "--json"]) == 0

    assert json.loads(capsys.readouterr().out) == {
        "model": "whatever",
        "path": str(weights),
        "format": "gguf",
        "size_bytes": 2048,
    }


def test_progress_is_a_bar_on_a_terminal(config, weights, terminal):
    screen = terminal("pull", "org/tiny", "--config", str(config), columns=120)

    screen.see("fetching")
    screen.see("2.0/2.0 KiB")
    screen.see("tiny.gguf  2.0 KiB\n")
    assert screen.leave() == 0


def test_an_id_nobody_knows_names_who_was_asked_with_an_example_each(capsys):
    assert main(["pull", "smollm2"]) == 1

    said = capsys.readouterr().err
    assert "no source knows the model 'smollm2', asked were package, file, hf" in said
    for example in ("smollm2-135m", "file:/srv/models/", "Qwen/Qwen3-0.6B"):
        assert example in said


@pytest.mark.parametrize("source", ["hff", "fil:/srv"])
def test_a_source_nobody_offers_is_named_with_the_nearest(capsys, source):
    assert main(["pull", "org/tiny", "--source", source]) == 2

    said = capsys.readouterr().err
    assert f"no source is called {source.partition(':')[0]!r} (did you mean" in said


def test_a_place_that_is_empty_is_named(capsys, tmp_path):
    assert main(["pull", "x", "--source", f"file:{tmp_path / 'none.gguf'}"]) == 1

    assert "none.gguf" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[sources.fil]\n", "neuron.toml: sources: no source is called 'fil' (did you mean"),
        ("[sources.file]\npath = []\n", "neuron.toml: sources.file: path: unknown key (did you"),
    ],
)
def test_a_mistake_in_the_configuration_names_file_and_key(tmp_path, capsys, text, said):
    path = tmp_path / "neuron.toml"
    path.write_text(text)

    assert main(["pull", "org/tiny", "--config", str(path)]) == 2

    assert said in capsys.readouterr().err


@attrs.frozen
class Shelf:
    """A source that knows one prefix."""

    prefix: str
    cache: Path

    def knows(self, model_id: str) -> bool:
        return model_id.startswith(self.prefix)

    def fetch(self, spec: ModelSpec, report) -> Checkpoint:
        report(Progress(stage=f"fetching {spec.id}"))
        return Checkpoint(path=self.cache, format="gguf", size_bytes=0)


@attrs.frozen
class ShelfOptions:
    prefix: str = "a"


@pytest.fixture
def shelves() -> Plugins:
    plugins = Plugins()
    registry = plugins.offers("source")
    registry._offers.clear()
    register = registry.registrar("test")
    register("one", lambda options, cache: Shelf(options.prefix, cache), options=ShelfOptions)
    register("two", lambda cache: Shelf("", cache))
    return plugins


@pytest.mark.parametrize(
    ("spec", "tables", "prefix"),
    [
        (ModelSpec(id="abc"), {}, "a"),
        (ModelSpec(id="xyz"), {}, ""),
        (ModelSpec(id="xyz"), {"one": {"prefix": "x"}}, "x"),
        (ModelSpec(id="abc", source="two"), {}, ""),
        (ModelSpec(id="xyz", source="one:there"), {}, "a"),
    ],
)
def test_the_source_is_the_named_one_else_the_first_that_knows(
    shelves, tmp_path, spec, tables, prefix
):
    assert shelves.source_of(spec, tables, "neuron.toml", tmp_path) == Shelf(prefix, tmp_path)


def test_options_for_a_source_that_takes_none_are_an_error(shelves, tmp_path):
    with pytest.raises(ConfigError, match=r"neuron\.toml: sources\.two"):
        shelves.source_of(ModelSpec(id="x"), {"two": {"a": 1}}, "neuron.toml", tmp_path)


def test_a_third_partys_source_gets_an_example_too(shelves, tmp_path):
    shelves.offers("source")._offers.pop("two")

    with pytest.raises(RepoFetchFailed, match="cortex pull ID --source one:WHERE"):
        shelves.source_of(ModelSpec(id="x"), {}, "neuron.toml", tmp_path)
