from __future__ import annotations

import pytest

from cortex.errors import EmptyRepo, QuantNotFound
from cortex.fleet.model import ModelSpec
from cortex.sources.weights import Listing, stem_of, tag_of

ONE_FOLDER = ["config.json", "tokenizer.json", "model.safetensors"]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
QUANTS = ["x-Q4_K_M.gguf", "x-Q4_K_S.gguf", "x-Q8_0.gguf"]


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-7b-instruct-q4_k_m-00001-of-00002.gguf", "Q4_K_M"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("ggml_model_q8_0.gguf", "Q8_0"),
        ("Qwen3-30B-A3B-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("x.i1-IQ2_XXS.gguf", "IQ2_XXS"),
        ("x-TQ1_0.gguf", "TQ1_0"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("x-BF16.gguf", "BF16"),
        ("qwen2.5-0.5b-instruct-fp16.gguf", "FP16"),
        ("Q4_K_M/x-00001-of-00003.gguf", "Q4_K_M"),
        ("x-Q5_K_M-imat.gguf", "Q5_K_M"),
        ("qwen2-7b.gguf", None),
        ("QwQ-32B.gguf", None),
    ],
)
def test_a_quant_is_read_from_the_file_name(name, tag):
    assert tag_of(stem_of(name)) == tag


@pytest.mark.parametrize(
    ("names", "quant", "files"),
    [
        (["x-Q8_0.gguf"], None, ["x-Q8_0.gguf"]),
        (["model.gguf"], None, ["model.gguf"]),
        (["x-Q8_0.gguf", "mmproj-x-F16.gguf", "imatrix_x.gguf"], None, ["x-Q8_0.gguf"]),
        (QUANTS, "q4_k_s", ["x-Q4_K_S.gguf"]),
        ([*QUANTS, "x-Q4_K.gguf"], "Q4_K", ["x-Q4_K.gguf"]),
        (["x-UD-Q4_K_XL.gguf", "x-Q8_0.gguf"], "Q4_K_XL", ["x-UD-Q4_K_XL.gguf"]),
        (["x-UD-Q4_K_M.gguf", "x-Q4_K_M.gguf"], "Q4_K_M", ["x-Q4_K_M.gguf"]),
        (["old/x-Q8_0.gguf", "x-Q8_0.gguf"], "Q8_0", ["x-Q8_0.gguf"]),
        (
            ["b/x-Q2_K-00002-of-00002.gguf", "b/x-Q2_K-00001-of-00002.gguf"],
            "Q2_K",
            ["b/x-Q2_K-00001-of-00002.gguf", "b/x-Q2_K-00002-of-00002.gguf"],
        ),
        (ONE_FOLDER, None, ONE_FOLDER),
        ([*ONE_FOLDER, *QUANTS], None, ONE_FOLDER),
        ([*ONE_FOLDER, *QUANTS], "Q8_0", ["x-Q8_0.gguf"]),
        ([*ONE_FOLDER, *SHARDS, "consolidated.safetensors"], None, ONE_FOLDER),
        (["config.json", *SHARDS, "consolidated.safetensors"], None, ["config.json", *SHARDS]),
        (["config.json", "a.safetensors"], None, ["config.json", "a.safetensors"]),
        (
            [
                *("m/config.json", "m/modules.json", "m/model.safetensors"),
                *("m/1_Pooling/config.json", "m/2_Dense/config.json"),
                *("m/2_Dense/model.safetensors", "m/onnx/config.json", "n/1_Pooling/config.json"),
            ],
            None,
            [
                *("m/config.json", "m/modules.json", "m/1_Pooling/config.json"),
                *("m/2_Dense/config.json", "m/2_Dense/model.safetensors", "m/model.safetensors"),
            ],
        ),
        (
            [*ONE_FOLDER, "model.onnx", "pytorch_model.bin", "README.md", "modeling_x.py"],
            None,
            ONE_FOLDER,
        ),
        ([*ONE_FOLDER, "onnx/config.json", "onnx/model.safetensors"], None, ONE_FOLDER),
        (
            ["pkg/w/config.json", "pkg/w/model.safetensors", "pkg/x.json"],
            None,
            ["pkg/w/config.json", "pkg/w/model.safetensors"],
        ),
    ],
)
def test_the_right_files_are_chosen(names, quant, files):
    chosen = Listing.of(reversed(names)).choose(quant, "place").files
    assert list(chosen) == files


@pytest.mark.parametrize(
    ("names", "quant", "nearest", "available"),
    [
        (QUANTS, "Q4_K_L", "Q4_K_S", ["Q4_K_M", "Q4_K_S", "Q8_0"]),
        (QUANTS, "q8", "Q8_0", ["Q4_K_M", "Q4_K_S", "Q8_0"]),
        (QUANTS, None, None, ["Q4_K_M", "Q4_K_S", "Q8_0"]),
        (["x-Q8_0.gguf"], "fp8", "Q8_0", ["Q8_0"]),
        (ONE_FOLDER, "fp8", None, []),
        (ONE_FOLDER, "Q4_K_M", None, []),
    ],
)
def test_a_quant_that_is_not_there_names_what_is(names, quant, nearest, available):
    with pytest.raises(QuantNotFound) as caught:
        Listing.of(names).choose(quant, "place")
    assert caught.value.details == {
        "requested": quant,
        "available": available,
        "nearest": nearest,
    }
    assert caught.value.code == "quant_not_found"


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "place holds no weights"),
        (["config.json", "pytorch_model.bin"], "place holds no weights"),
        (["model.safetensors"], "place holds no weights"),
        (["x-Q2_K-00001-of-00003.gguf", "x-Q2_K-00003-of-00003.gguf"], "2 of the 3 parts"),
        (["config.json", SHARDS[0]], "1 of the 2 parts"),
    ],
)
def test_weights_that_are_not_whole_are_an_empty_repo(names, says):
    with pytest.raises(EmptyRepo, match=says):
        Listing.of(names).choose(None, "place")


@pytest.mark.parametrize(
    ("source", "scheme", "location"),
    [
        (None, None, "a/b"),
        ("hf", "hf", "a/b"),
        ("file:/srv/x.gguf", "file", "/srv/x.gguf"),
        ("hf:c/d@v1:2", "hf", "c/d@v1:2"),
        ("file:", "file", "a/b"),
    ],
)
def test_a_source_key_is_a_scheme_and_a_location(source, scheme, location):
    spec = ModelSpec(id="a/b", source=source)
    assert (spec.scheme, spec.location) == (scheme, location)
