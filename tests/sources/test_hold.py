"""A folder of weights that is held is nobody's to delete."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cortex.sources.hold import Hold, hold


def test_many_hold_a_folder_and_nobody_then_has_it_alone(tmp_path):
    with Hold(tmp_path), Hold(tmp_path), pytest.raises(BlockingIOError):
        Hold(tmp_path, alone=True)

    with Hold(tmp_path, alone=True), pytest.raises(BlockingIOError):
        Hold(tmp_path)


def test_a_hold_ends_with_its_process_however_that_ends(tmp_path):
    program = (
        "import sys; from pathlib import Path; from cortex.sources.hold import Hold\n"
        "Hold(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError):
            Hold(tmp_path, alone=True)
        process.kill()
    Hold(tmp_path, alone=True).release()


def test_a_file_holds_its_folder_and_what_is_held_counts_as_used(tmp_path):
    weights, other = tmp_path / "a.gguf", tmp_path / "b.gguf"
    for file in (weights, other):
        file.touch()
        os.utime(file, (1000, 2000))

    held = hold(weights)

    with pytest.raises(BlockingIOError):
        Hold(tmp_path, alone=True)
    assert weights.stat().st_atime > 2000
    assert (weights.stat().st_mtime, other.stat().st_atime) == (2000, 1000)
    held.release()
    held.release()
    Hold(tmp_path, alone=True).release()


def test_what_is_not_there_is_not_held(tmp_path):
    assert hold(tmp_path / "absent" / "x.gguf") is None
