"""A change to a configuration leaves the rest of it as it is, or is not made."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.config import edit
from cortex.errors import ConfigError

EXAMPLE = (Path(__file__).parents[2] / "examples" / "cortex.toml").read_text()
VALUES = {"name": 'a "quoted" name', "sha256": "0" * 64, "models": ["org/*"], "admin": True}
OTHERS = [
    "",
    "# only a comment",
    '[gateway]\nlisten = "h:1"',
    '[gateway]\r\nlisten = "h:1"  # where\r\n\r\n# the nodes\r\n[[neurons]]\r\nname = "n"\r\n',
    "[auth]\nrequire = true\n\n# anonymous\n[auth.anonymous]\nmax_concurrency = 1\n",
    '[[ auth . keys ]]\nname = "first"\n\n[gateway]\n\n[[auth.keys]]\nname = "second"\n',
    'x = """\n[[auth.keys]]\n"""\n',
    EXAMPLE,
]


def keys(path: Path) -> list[dict]:
    return tomlkit.parse(path.read_text()).unwrap()["auth"]["keys"]


@pytest.mark.parametrize("text", OTHERS)
def test_a_key_comes_at_the_end_and_goes_without_a_trace(tmp_path, text):
    path = tmp_path / "cortex.toml"
    path.write_bytes(text.encode())
    edit.add_key(path, VALUES)
    assert path.read_bytes().startswith(text.encode())
    assert keys(path)[-1] == VALUES
    if "[[auth.keys]]\n" in text.replace('"""', ""):
        return
    edit.remove_key(path, VALUES["name"])
    assert path.read_bytes().rstrip() == text.encode().rstrip()


KEYS = """\
# who may come in
[auth]
require = true   # nobody else

[[auth.keys]]    # the first
name = "a"
models = [
  "x",  # one
]

# Zed's
[[auth.keys]]
name = "b"

# the nodes
[[neurons]]
name = "n"

[[auth.keys]]
name = "c"
"""
WITHOUT = {
    "a": KEYS.replace(KEYS[KEYS.index("[[auth.keys]]    #") : KEYS.index("# Zed's")], ""),
    "b": KEYS.replace('[[auth.keys]]\nname = "b"\n\n', ""),
    "c": KEYS.replace('[[auth.keys]]\nname = "c"\n', ""),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_a_key_goes_with_its_table_and_nothing_else(tmp_path, name):
    path = tmp_path / "cortex.toml"
    path.write_text(KEYS)
    edit.remove_key(path, name)
    assert path.read_text() == WITHOUT[name]


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """The example with keys of five names."""
    path = tmp_path_factory.mktemp("five") / "cortex.toml"
    path.write_text(EXAMPLE)
    for name in "abcde":
        edit.add_key(path, {"name": name, "sha256": name * 64})
    assert [key["name"] for key in keys(path)] == [*"abcde"]
    return path.read_text()


@settings(max_examples=20)
@given(st.permutations("abcde"), st.integers(0, 5))
def test_keys_come_and_go_in_any_order(five, tmp_path_factory, order, kept):
    path = tmp_path_factory.mktemp("edit") / "cortex.toml"
    path.write_text(five)
    for name in order[kept:]:
        edit.remove_key(path, name)
    left = sorted(order[:kept])
    if left:
        assert [key["name"] for key in keys(path)] == left
    assert path.read_text().startswith(EXAMPLE.rstrip())


@pytest.mark.parametrize(
    "text",
    [
        'auth = {keys = [{name = "a"}]}\n',
        '[auth]\nkeys = [{name = "a"}]\n',
        'x = """\n',
        "auth = 1",
    ],
)
def test_a_file_written_otherwise_is_left_alone(tmp_path, text):
    path = tmp_path / "cortex.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"cortex\.toml: .*by hand"):
        edit.add_key(path, VALUES)
    if "name" in text:
        with pytest.raises(ConfigError, match="remove 'a' by hand"):
            edit.remove_key(path, "a")
    assert path.read_text() == text
    assert [*tmp_path.iterdir()] == [path]


def test_mode_and_links_stay(tmp_path):
    real, path = tmp_path / "real.toml", tmp_path / "cortex.toml"
    real.write_text("")
    real.chmod(0o640)
    path.symlink_to(real)
    edit.add_key(path, VALUES)
    assert path.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert keys(real) == [VALUES]


def test_a_folder_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    path = tmp_path / "cortex.toml"
    path.write_text("")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(edit.tempfile, "mkstemp", refuse)
    with pytest.raises(ConfigError, match="it cannot be written: Permission denied"):
        edit.add_key(path, VALUES)
