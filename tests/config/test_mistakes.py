"""Every mistake is said at once, and where it is."""

from __future__ import annotations

import pytest

from cortex.config.mistakes import Mistakes, line_of
from cortex.errors import ConfigError

TEXT = '''\
# neurons = 1
[gateway]
listen = "a:1"
text = """
[[neurons]]
endpoint = "no"
"""
dialects = [
  "a",  # one
  "b",
]

[[neurons]]
name = "a"

# more
[[neurons]]
name = "b"
endpoint = "http://b:1"
[aliases]
"a.b" = "c"
'''


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("gateway", 2),
        ("gateway.listen", 3),
        ("gateway.text", 4),
        ("gateway.dialects", 8),
        ("gateway.dialects[1]", 8),
        ("neurons[0].name", 14),
        ("neurons[0].endpoint", 13),  # missing: the table it belongs to
        ("neurons[1].endpoint", 19),
        ("aliases['a.b']", 21),
        ("nothing.of.it", None),
    ],
)
def test_a_key_is_found_where_it_begins(key, line):
    assert line_of(TEXT, key) == line


def test_what_is_no_toml_has_no_lines():
    assert line_of("x = [", "x") is None


def test_one_mistake_is_raised_as_it_is_and_several_as_one():
    mistakes, first = Mistakes(), ConfigError("a", hint="do b")
    with mistakes:
        raise first
    with pytest.raises(ConfigError) as one:
        mistakes.raise_any()
    assert one.value is first

    with mistakes:
        raise ConfigError("c")
    with pytest.raises(ConfigError) as both:
        mistakes.raise_any()
    assert str(both.value) == "a (do b); c"
    assert [str(each) for each in both.value.each] == ["a (do b)", "c"]


def test_what_is_no_mistake_of_a_configuration_goes_through():
    with pytest.raises(KeyError), Mistakes():
        raise KeyError
