"""Offers are named once, found by name, and built with typed options."""

from __future__ import annotations

import attrs
import pytest

from cortex.errors import ConfigError, PluginError
from cortex.registry import Registry, did_you_mean


@attrs.frozen(kw_only=True)
class Options:
    depth: int = 1


class Thing:
    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments


@pytest.fixture
def registry() -> Registry[Thing]:
    registry: Registry[Thing] = Registry("source")
    registry.registrar("plugin-a")("shelf", Thing, summary="a shelf")
    registry.registrar("plugin-a")("box", Thing, options=Options)
    return registry


def test_an_offer_is_found_by_its_name(registry):
    offer = registry["shelf"]

    assert (offer.name, offer.plugin, offer.summary) == ("shelf", "plugin-a", "a shelf")
    assert "shelf" in registry
    assert [offer.name for offer in registry] == ["shelf", "box"]
    assert len(registry) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shelf", "source 'shelf' is already offered by plugin-a"),
        ("Shelf", "source name 'Shelf' is not lower-case kebab"),
        ("a_b", "source name 'a_b' is not lower-case kebab"),
        ("1a", "source name '1a' is not lower-case kebab"),
        ("a--b", "source name 'a--b' is not lower-case kebab"),
        ("", "source name '' is not lower-case kebab"),
    ],
)
def test_a_name_that_is_taken_or_malformed_is_refused(registry, name, message):
    with pytest.raises(PluginError) as caught:
        registry.registrar("plugin-b")(name, Thing)

    assert str(caught.value) == message
    assert len(registry) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shelv", "no source is called 'shelv' (did you mean 'shelf'?)"),
        ("zzz", "no source is called 'zzz' (known: box, shelf)"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(registry, name, message):
    with pytest.raises(ConfigError) as caught:
        registry[name]

    assert str(caught.value) == message


def test_only_the_beginning_of_a_name_is_compared():
    assert did_you_mean("m" * 40_000_000, {"m" * 300: 0}) == f"did you mean {'m' * 300!r}?"


def test_where_nothing_is_offered_that_is_said():
    assert did_you_mean("x", {}) == "none is known"


def test_options_are_typed_and_come_first(registry):
    thing = registry["box"].build("host", table={"depth": 3}, where="neuron.toml: sources.box")

    assert thing.arguments == (Options(depth=3), "host")
    assert registry["box"].build().arguments == (Options(depth=1),)
    assert registry["shelf"].build("host").arguments == ("host",)


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("box", {"depht": 3}, "t.toml: box: depht: unknown key (did you mean 'depth'?)"),
        ("box", {"depth": "x"}, "t.toml: box: depth: expected a whole number, got 'x' (a string)"),
        ("shelf", {"a": 1}, "t.toml: box: source 'shelf' takes no options"),
    ],
)
def test_wrong_options_name_file_and_key(registry, name, table, message):
    with pytest.raises(ConfigError) as caught:
        registry[name].build(table=table, where="t.toml: box")

    assert str(caught.value) == message
