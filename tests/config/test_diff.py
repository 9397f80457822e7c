"""What differs between two configurations is told by key path, and a secret is not told at all."""

from __future__ import annotations

from cortex.config.diff import Change, changes, shown
from cortex.config.schema import (
    Address,
    AuthSection,
    Catalogue,
    GatewayConfig,
    GatewaySection,
    NeuronEntry,
    QueueSection,
)
from cortex.fleet.model import ModelSpec
from cortex.fleet.principal import Key, digest

A = NeuronEntry(name="a", endpoint="http://a:1", token="hush")


def test_equal_configurations_have_no_changes():
    assert list(changes(GatewayConfig(neurons=(A,)), GatewayConfig(neurons=(A,)))) == []


def test_a_change_names_its_key_and_both_values():
    was = GatewayConfig(gateway=GatewaySection(listen=Address("127.0.0.1", 1)))
    now = GatewayConfig(
        gateway=GatewaySection(listen=Address("127.0.0.1", 2)), queue=QueueSection(max_depth=3)
    )

    assert list(changes(was, now)) == [
        Change("gateway.listen", "127.0.0.1:1", "127.0.0.1:2"),
        Change("queue.max_depth", 512, 3),
    ]


def test_tables_are_compared_by_name_wherever_they_stand():
    b = NeuronEntry(name="b", endpoint="http://b:1")
    c = NeuronEntry(name="c", endpoint="http://c:1")
    moved = NeuronEntry(name="b", endpoint="http://b:2")

    found = list(changes(GatewayConfig(neurons=(A, b)), GatewayConfig(neurons=(c, moved))))

    plain = {"ca": None, "client_cert": None, "client_key": None}
    assert found == [
        Change(
            "neurons[a]", {"name": "a", "endpoint": "http://a:1", "token": "***", **plain}, None
        ),
        Change("neurons[b].endpoint", "http://b:1", "http://b:2"),
        Change("neurons[c]", None, {"name": "c", "endpoint": "http://c:1", "token": None, **plain}),
    ]


def test_the_catalogue_is_compared_by_id_and_alias():
    was = Catalogue(models=(ModelSpec(id="m", defaults={"top_p": 1.0}),), aliases={"x": "m"})
    now = Catalogue(models=(ModelSpec(id="m", vram_mb=5),), aliases={"y": "m"})

    assert list(changes(was, now)) == [
        Change("models[m].vram_mb", None, 5),
        Change("models[m].defaults[top_p]", 1.0, None),
        Change("aliases[x]", "m", None),
        Change("aliases[y]", None, "m"),
    ]


def test_no_secret_is_shown_and_that_it_changed_is():
    def config(secret: str) -> GatewayConfig:
        auth = AuthSection(
            keys=(Key(name="k", sha256=digest(secret)),),
            options={"ldap": {"password": secret}},
        )
        entry = NeuronEntry(name="a", endpoint="http://a:1", token=secret)
        return GatewayConfig(auth=auth, neurons=(entry,))

    found = list(changes(config("one"), config("two")))

    assert [change.key for change in found] == [
        "auth.keys[k].sha256",
        "auth.options",
        "neurons[a].token",
    ]
    said = repr(found) + repr(shown(config("one")))
    for secret in ("one'", "two'", digest("one"), digest("two")):
        assert secret not in said
