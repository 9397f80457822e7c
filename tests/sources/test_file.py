from __future__ import annotations

from pathlib import Path

import pytest

from cortex.errors import EmptyRepo, QuantNotFound, RepoFetchFailed
from cortex.fleet.model import ModelSpec
from cortex.sources.file import FileOptions, FileSource

FILES = {
    "tiny.gguf": 10,
    "big-Q2_K-00001-of-00002.gguf": 5,
    "big-Q2_K-00002-of-00002.gguf": 6,
    "big-Q8_0.gguf": 7,
    "owner/plain/config.json": 1,
    "owner/plain/model.safetensors": 20,
    "owner/quants/x-Q4_K_M.gguf": 30,
    "owner/quants/x-Q8_0.gguf": 40,
    "notes/readme.txt": 3,
}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name, size in FILES.items():
        path = tmp_path / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
    return tmp_path / "models"


@pytest.fixture
def source(models: Path) -> FileSource:
    return FileSource(FileOptions(paths=(str(models / "elsewhere"), str(models))), models)


@pytest.mark.parametrize(
    ("model_id", "key", "quant", "path", "format_", "size"),
    [
        ("tiny", None, None, "tiny.gguf", "gguf", 10),
        ("tiny.gguf", None, None, "tiny.gguf", "gguf", 10),
        ("m", "file:{models}/tiny.gguf", None, "tiny.gguf", "gguf", 10),
        ("m", "file:{models}/tiny.gguf", "Q4_K_M", "tiny.gguf", "gguf", 10),
        ("m", "file:tiny", None, "tiny.gguf", "gguf", 10),
        ("{models}/tiny.gguf", "file", None, "tiny.gguf", "gguf", 10),
        (
            "m",
            "file:{models}/big-Q2_K-00001-of-00002.gguf",
            None,
            "big-Q2_K-00001-of-00002.gguf",
            "gguf",
            11,
        ),
        ("owner/plain", None, None, "owner/plain", "safetensors", 20),
        ("owner/plain", None, "fp8", "owner/plain", "safetensors", 20),  # that is for the engine
        ("m", "file:{models}/owner/plain", None, "owner/plain", "safetensors", 20),
        ("owner/quants", None, "q8_0", "owner/quants/x-Q8_0.gguf", "gguf", 40),
    ],
)
def test_weights_on_the_disk_are_found(
    source, models, reports, model_id, key, quant, path, format_, size
):
    key = key.format(models=models) if key else None
    spec = ModelSpec(id=model_id.format(models=models), source=key, quant=quant)
    checkpoint = source.fetch(spec, reports)
    assert checkpoint.path == models / path
    assert (checkpoint.format, checkpoint.size_bytes) == (format_, size)
    assert (reports[-1].done, reports[-1].total) == (size, size)


@pytest.mark.parametrize(
    ("model_id", "known"),
    [
        ("tiny", True),
        ("owner/plain", True),
        ("owner/none", False),
        ("../models/tiny", False),
        ("/etc/hosts", False),
    ],
)
def test_only_what_lies_under_the_paths_is_known(source, model_id, known):
    assert source.knows(model_id) is known


def test_an_error_names_the_places_looked_in_and_the_nearest(source, models, reports):
    with pytest.raises(RepoFetchFailed) as caught:
        source.fetch(ModelSpec(id="tinny"), reports)
    assert f"{models}/tinny" in caught.value.message
    assert f"{models}/elsewhere/tinny.gguf" in caught.value.message
    assert caught.value.hint == f"did you mean {models}/tiny.gguf?"


def test_a_missing_path_names_its_neighbour(source, models, reports):
    with pytest.raises(RepoFetchFailed) as caught:
        source.fetch(ModelSpec(id="m", source=f"file:{models}/owner/plane"), reports)
    assert caught.value.hint == f"did you mean {models}/owner/plain?"


def test_without_paths_an_id_says_what_to_set(models, reports):
    with pytest.raises(RepoFetchFailed, match=r"sources\.file\.paths"):
        FileSource(FileOptions(), models).fetch(ModelSpec(id="tiny", source="file"), reports)


@pytest.mark.parametrize(
    ("place", "quant", "error", "says"),
    [
        ("notes", None, EmptyRepo, "holds no weights"),
        ("notes/readme.txt", None, EmptyRepo, "neither a folder nor a .gguf file"),
        ("owner/quants", None, QuantNotFound, "several quants"),
        ("owner/quants", "Q4_K_S", QuantNotFound, "nearest is Q4_K_M"),
        ("big-Q8_0.gguf", "Q4_0", QuantNotFound, "nearest is Q8_0"),
    ],
)
def test_a_place_without_the_weights_says_so(source, models, reports, place, quant, error, says):
    spec = ModelSpec(id="m", source=f"file:{models}/{place}", quant=quant)
    with pytest.raises(error, match=says):
        source.fetch(spec, reports)
