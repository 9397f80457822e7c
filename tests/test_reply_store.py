"""Kept answers: what is bounded, what survives, and where nothing can be written."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.config.schema import RepliesSection
from cortex.reply_store import ReplyStore

MIB = 1 << 20


class Clock:
    def __init__(self):
        self.now = 1e9

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    stores = []

    def build(path=None, **limits):
        stores.append(ReplyStore(RepliesSection(path=path, **limits), clock))
        return stores[-1]

    yield build
    for opened in stores:
        opened.close()


def test_what_is_kept_survives_a_restart(store, tmp_path):
    path = tmp_path / "state" / "cortex" / "replies.db"
    store(path).put("d", "resp_1", b"first")
    assert store(path).get("d", ["resp_1", "resp_2"]) == {"resp_1": b"first"}


def test_only_its_owner_can_read_the_database(store, tmp_path):
    path = tmp_path / "state" / "replies.db"
    store(path).put("d", "a", b"secret")
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes.keys() == {"replies.db", "replies.db-shm", "replies.db-wal"}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_what_is_deleted_is_gone_and_said_so_once(store, tmp_path):
    path = tmp_path / "replies.db"
    kept = store(path)
    kept.put("d", "a", b"secret words")
    assert kept.delete("d", "a")
    assert not kept.delete("d", "a")
    assert kept.get("d", ["a"]) == {}
    kept.close()
    assert b"secret words" not in path.read_bytes()


def test_a_dialect_sees_only_its_own(store):
    kept = store()
    kept.put("one", "a", b"1")
    kept.put("two", "a", b"2")
    assert kept.get("one", ["a"]) == {"a": b"1"}
    assert kept.delete("two", "a")
    assert kept.get("one", ["a"]) == {"a": b"1"}


def test_an_owner_sees_only_its_own_and_takes_no_id_from_another(store, clock, caplog):
    kept = store(ttl_s=10.0)
    kept.put("d", "a", b"zed's", "zed")
    kept.put("d", "a", b"amy's", "amy")
    assert "answer a is not kept: somebody else has one" in caplog.text
    assert kept.get("d", ["a"], "zed") == {"a": b"zed's"}
    assert kept.get("d", ["a"], "amy") == kept.get("d", ["a"]) == {}
    assert not kept.delete("d", "a", "amy")
    kept.put("d", "a", b"zed's, again", "zed")
    assert kept.get("d", ["a"], "zed") == {"a": b"zed's, again"}
    clock.now += 11
    kept.put("d", "a", b"amy's", "amy")
    assert kept.get("d", ["a"], "amy") == {"a": b"amy's"}


def test_what_is_too_old_is_neither_found_nor_kept(store, clock):
    kept = store(ttl_s=10.0)
    kept.put("d", "a", b"1")
    clock.now += 11
    assert kept.get("d", ["a"]) == {}
    assert not kept.delete("d", "a")
    kept.put("d", "b", b"2")
    clock.now -= 11
    assert kept.get("d", ["a", "b"]) == {"b": b"2"}


def test_an_answer_larger_than_everything_is_left_out_and_the_others_stay(store, caplog):
    kept = store(max_mb=1)
    kept.put("d", "a", b"1")
    kept.put("d", "b", b"x" * (MIB + 1))
    assert kept.get("d", ["a", "b"]) == {"a": b"1"}
    assert "b is larger" in caplog.text


@given(
    sizes=st.lists(st.integers(0, MIB // 2), max_size=12),
    max_count=st.integers(1, 6),
)
def test_the_newest_are_kept_as_far_as_the_bounds_allow(sizes, max_count):
    kept = ReplyStore(RepliesSection(max_count=max_count, max_mb=1), Clock())
    for number, size in enumerate(sizes):
        kept.put("d", str(number), bytes(size))
    expected, total = set(), 0
    for number, size in reversed([*enumerate(sizes)]):
        total += size
        if total > MIB or len(expected) == max_count:
            break
        expected.add(str(number))
    assert kept.get("d", [str(number) for number in range(len(sizes))]).keys() == expected
    kept.close()


def test_a_place_that_cannot_be_used_is_a_warning_and_answers_are_kept_in_memory(
    store, tmp_path, caplog
):
    (tmp_path / "file").write_text("in the way")
    kept = store(tmp_path / "file" / "replies.db")
    kept.put("d", "a", b"1")
    assert kept.get("d", ["a"]) == {"a": b"1"}
    assert "until this process ends" in caplog.text


def test_a_file_that_is_no_database_is_left_alone(store, tmp_path, caplog):
    path = tmp_path / "replies.db"
    path.write_bytes(b"not a database, and long enough to have no room for a header" * 9)
    kept = store(path)
    kept.put("d", "a", b"1")
    assert kept.get("d", ["a"]) == {"a": b"1"}
    assert path.read_bytes().startswith(b"not a database")
    assert str(path) in caplog.text
