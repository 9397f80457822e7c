"""The torch harness: its worker process, its engine, its text side, without HTTP."""

from __future__ import annotations

import asyncio
import json
import shutil

import attrs
import pytest

from cortex.chat.events import Failed, Finished, Started, TextDelta
from cortex.chat.request import ChatRequest, Message, Sampling, Text
from cortex.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    LoadFailed,
    ModelNotFound,
    RepoFetchFailed,
    UnsupportedArchitecture,
)
from cortex.fleet.model import Checkpoint, ModelSpec
from cortex.neuron.engine import jobs
from cortex.resumption import Said, resumed
from tests.neuron.engine.conftest import load, running_harness
from tests.neuron.engine.tiny import save_tiny

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.xdist_group("torch"),
    pytest.mark.asyncio(loop_scope="module"),
]
PROMPTS = (
    "What is the capital of France?",
    "Tell me a story about a fox.",
    "Explain photosynthesis in one paragraph.",
    "def fibonacci(n):",
    "Write a haiku about the sea.",
)


def ask(text, request_id="r", model="tiny", **sampling):
    sampling = {"temperature": 0.0, "max_tokens": 16, **sampling}
    message = Message(role="user", parts=(Text(text),))
    return ChatRequest(
        id=request_id, model=model, messages=(message,), sampling=Sampling(**sampling)
    )


async def answer(harness, request):
    """Return the text and the last event."""
    events = [event async for event in harness.generate(request)]
    assert isinstance(events[0], Started)
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    return text, events[-1]


async def tokens_of(worker, job):
    return [event.id async for event in worker.ask(job) if isinstance(event, jobs.Token)]


def reference(checkpoint, prompts, count):
    """Return the token ids transformers' own `generate` gives, greedily, without end tokens."""
    import torch
    import transformers

    where, more = checkpoint.path, {}
    if checkpoint.format == "gguf":
        where, more = checkpoint.path.parent, {"gguf_file": checkpoint.path.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(where, **more, dtype=torch.float32)
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    answers = []
    for ids in prompts:
        prompt = torch.tensor([ids])
        with torch.inference_mode():
            output = model.generate(prompt, do_sample=False, max_new_tokens=count)
        answers.append([t for t in output[0, len(ids) :].tolist() if t not in ends])
    return answers


async def greedy(harness, model, count):
    """Return the token ids of all prompts, and of what is said to them greedily."""
    running = harness._models[model]
    ids = [running.text.prompt(ask(text)).ids for text in PROMPTS]
    made = [
        jobs.Generate(id=str(n), model=model, prompt=i, max_tokens=count, temperature=0.0)
        for n, i in enumerate(ids)
    ]
    return ids, await asyncio.gather(*(tokens_of(running.worker, job) for job in made))


async def test_logprobs_are_transformers_own_whatever_the_sampling_did_to_the_logits(
    harness, tiny_llama
):
    running = harness._models["tiny"]
    prompt = running.text.prompt(ask("how likely")).ids
    altered = {"temperature": 0.7, "top_k": 9, "seed": 1, "logit_bias": {70: 3.0}}
    job = jobs.Generate(id="l", model="tiny", prompt=prompt, max_tokens=12, logprobs=3, **altered)
    events = [event async for event in running.worker.ask(job)]
    tokens = [event for event in events if isinstance(event, jobs.Token)]
    assert len(tokens) > 3
    every = await asyncio.to_thread(logprobs, tiny_llama, [*prompt, *(t.id for t in tokens)])
    for token, row in zip(tokens, every[len(prompt) - 1 :], strict=False):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
        best = row.topk(3)
        assert [number for number, _ in token.top] == best.indices.tolist()
        assert [p for _, p in token.top] == pytest.approx(best.values.tolist(), abs=1e-4)


async def test_no_logprobs_unless_they_are_asked_for_and_none_of_the_likeliest_for_0(harness):
    worker = harness._models["tiny"].worker
    job = {"model": "tiny", "prompt": [70, 71], "max_tokens": 2, "temperature": 0.0}
    plain = await anext(worker.ask(jobs.Generate(id="p", **job)))
    assert (plain.logprob, plain.top) == (None, [])
    asked = await anext(worker.ask(jobs.Generate(id="a", logprobs=0, **job)))
    assert asked.logprob < 0
    assert asked.top == []


def logprobs(checkpoint, ids):
    """Return the log probabilities transformers gives for what follows each of *ids*."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
async def test_greedy_output_of_a_safetensors_family_is_transformers_own(family, harness, request):
    checkpoint = request.getfixturevalue(f"tiny_{family}")
    await load(harness, checkpoint, family)
    ids, got = await greedy(harness, family, 32)
    await harness.unload(family)
    assert got == await asyncio.to_thread(reference, checkpoint, ids, 32)
    assert sum(map(len, got)) > len(PROMPTS)


async def test_an_answer_is_started_deltas_finished_and_its_usage_adds_up(harness, tiny_llama):
    running = await load(harness, tiny_llama, "other")
    assert running.context == 2048
    assert running.used_bytes > 100_000
    events = [event async for event in harness.generate(ask("hello", max_tokens=7))]
    prompt = harness._models["tiny"].text.prompt(ask("hello")).ids
    assert events[0] == Started(prompt_tokens=len(prompt))
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.usage.prompt_tokens == len(prompt)
    assert finished.reason in ("length", "stop")
    assert 1 <= finished.usage.completion_tokens <= 7
    assert finished.usage.prefill_ms > 0


def begun(request, text):
    """Return a request that goes on from an answer of *text*."""
    turn = Message(role="assistant", parts=(Text(text),))
    left = request.sampling.max_tokens - len(text)
    sampling = attrs.evolve(request.sampling, max_tokens=left)
    return attrs.evolve(request, messages=(*request.messages, turn), sampling=sampling)


async def test_an_answer_goes_on_as_it_would_have_from_any_token_of_it(harness):
    request = ask("Say it.", max_tokens=24, logit_bias=dict.fromkeys(range(40, 98), 100.0))
    whole, last = await answer(harness, request)
    assert len(set(whole)) > 1  # and a token is a character
    for at in range(1, len(whole)):
        rest, ended = await answer(harness, begun(request, whole[:at]))
        assert whole[:at] + rest == whole, at
        assert ended.usage.prompt_tokens == last.usage.prompt_tokens + at
        assert ended.usage.completion_tokens == last.usage.completion_tokens - at


async def test_an_answer_that_another_node_began_is_counted_as_one(harness):
    request = ask("Say it.", max_tokens=12, logit_bias=dict.fromkeys(range(40, 98), 100.0))
    whole, last = await answer(harness, request)
    for at in (0, 5, len(whole)):
        rest, ended = await answer(harness, resumed(request, Said(text=whole[:at])))
        assert whole[:at] + rest == whole
        assert ended.reason == last.reason == "length"
        assert attrs.astuple(ended.usage)[:4] == attrs.astuple(last.usage)[:4], at


async def test_the_same_seed_gives_the_same_answer_whatever_else_runs(harness):
    hot = {"temperature": 1.0, "max_tokens": 24}
    alone = await answer(harness, ask("dice", "a", seed=7, **hot))
    others = [answer(harness, ask("noise", f"n{n}", seed=n, **hot)) for n in range(4)]
    crowded, *_ = await asyncio.gather(answer(harness, ask("dice", "b", seed=7, **hot)), *others)
    other = await answer(harness, ask("dice", "c", seed=8, **hot))
    assert crowded[0] == alone[0]
    assert other[0] != alone[0]


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-39}])
async def test_top_k_of_one_and_a_tiny_top_p_or_temperature_are_greedy(narrow, harness):
    greedy = await answer(harness, ask("x", "a"))
    assert (await answer(harness, ask("x", "b", **{"temperature": 1.5, **narrow})))[0] == greedy[0]


@pytest.mark.parametrize("huge", [(1 << 32) + 1, 1 << 63, 1 << 70])
async def test_a_top_k_and_a_seed_of_any_size_are_taken(harness, huge):
    every = await answer(harness, ask("hi", temperature=1.0, seed=7))
    same = await answer(harness, ask("hi", temperature=1.0, seed=7 + (huge << 63), top_k=huge))
    assert isinstance(same[1], Finished)
    assert same[0] == every[0]


async def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(harness):
    whole, _ = await answer(harness, ask("stop", "a", max_tokens=64))
    stop = whole[5:8]
    text, finished = await answer(harness, ask("stop", "b", max_tokens=64, stop=(stop,)))
    assert text == whole[: whole.index(stop)]
    assert finished.reason == "stop"
    assert finished.stop_string == stop
    assert finished.usage.completion_tokens < 64


async def test_closing_an_answer_stops_the_engine(harness):
    events = harness.generate(ask("long", max_tokens=2000))
    seen = 0
    async for event in events:
        seen += isinstance(event, TextDelta)
        if seen == 5:
            break
    counted = harness.stats("tiny").tokens_total
    await events.aclose()
    assert harness.stats("tiny").in_flight == 0
    await answer(harness, ask("next", "n", max_tokens=1))  # the engine took the cancel by now
    assert harness.stats("tiny").tokens_total < counted + 200  # of the 2,000 it would have been


async def test_max_sequences_run_at_once_and_more_wait(harness):
    answers = [
        asyncio.create_task(answer(harness, ask("q", f"r{n}", max_tokens=100))) for n in range(10)
    ]
    async with asyncio.timeout(30):
        while harness.stats("tiny").queue_depth < 2:
            await asyncio.sleep(0)
    assert harness.stats("tiny").in_flight == 8
    texts = {text for text, _ in await asyncio.gather(*answers)}
    assert len(texts) == 1
    assert harness.stats("tiny").queue_depth == 0


async def test_a_prompt_over_the_context_is_refused_with_both_numbers(harness, tiny_llama):
    await load(harness, tiny_llama, "short", context=32)
    with pytest.raises(ContextLengthExceeded) as caught:
        await anext(harness.generate(ask("word " * 20, model="short")))
    assert "32 tokens" in str(caught.value)
    text, finished = await answer(harness, ask("hi", "b", model="short", max_tokens=1000))
    assert text is not None
    assert finished.usage.prompt_tokens + finished.usage.completion_tokens <= 32


async def test_what_the_template_refuses_is_the_clients_error(harness, tiny_llama, tmp_path):
    folder = tmp_path / "strict"
    shutil.copytree(tiny_llama.path, folder)
    template = "{{ raise_exception('roles must alternate') }}"
    (folder / "chat_template.jinja").write_text(template)
    checkpoint = Checkpoint(path=folder, format="safetensors", size_bytes=1)
    await load(harness, checkpoint, "strict")
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        await anext(harness.generate(ask("hi", model="strict")))


async def test_a_damaged_checkpoint_and_a_strange_architecture_are_told(
    harness, tiny_llama, tmp_path
):
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_llama.path, damaged)
    (damaged / "model.safetensors").write_bytes(b"not weights")
    strange = tmp_path / "strange"
    shutil.copytree(tiny_llama.path, strange)
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps({**config, "model_type": "resnet"}))
    for folder, kind in ((damaged, RepoFetchFailed), (strange, UnsupportedArchitecture)):
        with pytest.raises(kind) as caught:
            await load(harness, Checkpoint(path=folder, format="safetensors", size_bytes=1), "bad")
        assert caught.value.status == 422
    assert await answer(harness, ask("hi"))


PANICS = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("generation_config.json", {"do_sample": True, "temperature": "hot"}),
        ("generation_config.json", {"do_sample": True, "top_k": float("inf")}),
        ("generation_config.json", {"eos_token_id": [[0]]}),
        ("sentence_bert_config.json", []),
        ("tokenizer.json", {"normalizer": PANICS}),
        ("tokenizer_config.json", {"chat_template": "{% if %}"}),
    ],
)
async def test_odd_files_end_no_worker_and_leave_nothing_on_it(
    file, change, harness, tiny_llama, tmp_path
):
    """Neither what is found once the weights are there nor what makes a library panic."""
    folder = tmp_path / "odd"
    shutil.copytree(tiny_llama.path, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=file == "tokenizer_config.json")
    if isinstance(change, dict):
        change = {**json.loads((folder / file).read_text()), **change}
    (folder / file).write_text(json.dumps(change))
    worker = harness._workers[0]
    pid = worker.pid
    with pytest.raises(RepoFetchFailed):
        await load(harness, Checkpoint(path=folder, format="safetensors", size_bytes=1), "odd")
    assert worker.pid == pid
    assert "odd" not in worker._kept
    assert await answer(harness, ask("hi"))


async def test_unload_ends_what_runs_and_frees_the_name(harness, tiny_llama):
    await load(harness, tiny_llama, "gone")
    events = harness.generate(ask("long", model="gone", max_tokens=2000))
    await anext(events)
    await anext(events)
    await harness.unload("gone")
    last = [event async for event in events][-1]
    assert isinstance(last, Failed)
    assert "unloaded" in str(last.error)
    with pytest.raises(ModelNotFound):
        await anext(harness.generate(ask("hi", "b", model="gone")))
    await load(harness, tiny_llama, "gone")
    assert await answer(harness, ask("hi", "c", model="gone"))


@pytest.mark.parametrize("stage", ["reading config", "reading weights", "moving to device"])
async def test_a_load_that_is_called_off_leaves_nothing_in_the_worker(harness, tiny_llama, stage):
    loading: list[asyncio.Task] = []

    def report(progress):
        if progress.stage == stage:
            loading[0].cancel()

    work = harness.load(ModelSpec(id="off"), tiny_llama, 0, report)
    loading.append(asyncio.create_task(work))
    await asyncio.wait(loading)
    assert loading[0].cancelled()
    await harness.unload("off")

    worker = harness._models["tiny"].worker
    asked = jobs.Generate(id="off", model="off", prompt=[1], max_tokens=1)
    said = [event async for event in worker.ask(asked)]
    assert said == [jobs.Lost(id="off", message="model 'off' is not loaded")]

    await load(harness, tiny_llama, "off")
    same = await answer(harness, ask("hi", "a", model="off"))
    assert same[0] == (await answer(harness, ask("hi", "b")))[0]
    await harness.unload("off")


async def test_a_load_that_is_called_off_while_it_waits_is_not_begun(harness, tiny_llama):
    worker = harness._models["tiny"].worker
    stages: list[str] = []
    first = jobs.Load(model="first", path=str(tiny_llama.path))
    second = jobs.Load(model="second", path=str(tiny_llama.path))
    loading = [
        asyncio.create_task(worker.load(first, lambda *_: None)),
        asyncio.create_task(worker.load(second, lambda stage, *_: stages.append(stage))),
    ]
    await asyncio.sleep(0)  # both are sent
    unloading = asyncio.create_task(worker.unload("second"))

    with pytest.raises(LoadFailed, match="is to be unloaded again"):
        await loading[1]
    await unloading
    await loading[0]
    assert stages == []
    await worker.unload("first")


async def test_a_biased_token_is_all_that_comes_and_an_unknown_one_is_a_400(harness):
    text, finished = await answer(harness, ask("x", max_tokens=5, logit_bias={70: 100.0}))
    assert len(set(text)) == 1
    assert finished.usage.completion_tokens == 5
    with pytest.raises(InvalidRequest, match="no token 100000"):
        await anext(harness.generate(ask("x", logit_bias={100_000: 1.0})))


async def test_no_client_can_ask_for_a_fault(harness):
    pid = harness._models["tiny"].worker.pid
    _, last = await answer(harness, ask("!fault poison"))
    assert isinstance(last, Finished)
    assert harness._models["tiny"].worker.pid == pid


async def test_tokens_are_counted_for_a_model_whose_weights_are_not_even_here(
    harness, tiny_llama, tmp_path
):
    folder = tmp_path / "text"
    shutil.copytree(tiny_llama.path, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    checkpoint = Checkpoint(path=folder, format="safetensors", size_bytes=0)
    count = await harness.counter(ModelSpec(id="cold"), checkpoint)
    request = ask("How many tokens is this?")
    assert await count(request) == await harness.count(request) > 20
    assert set(harness._models) >= {"tiny"}
    assert "cold" not in harness._models


async def test_a_tokenizer_that_makes_its_library_panic_is_told(harness, tiny_llama, tmp_path):
    folder = tmp_path / "odd"
    shutil.copytree(tiny_llama.path, folder)
    said = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**said, "normalizer": PANICS}))
    checkpoint = Checkpoint(path=folder, format="safetensors", size_bytes=0)
    async with asyncio.timeout(20):
        with pytest.raises(RepoFetchFailed, match="charsmap"):
            await harness.counter(ModelSpec(id="cold"), checkpoint)


async def test_a_tokenizer_that_cannot_be_read_is_told(harness, tmp_path):
    checkpoint = Checkpoint(path=tmp_path, format="safetensors", size_bytes=0)
    with pytest.raises(RepoFetchFailed, match="tokenizer"):
        await harness.counter(ModelSpec(id="cold"), checkpoint)


async def test_weights_can_be_kept_in_eight_bits(harness, tiny_llama):
    whole = await load(harness, tiny_llama, "whole")
    small = await load(harness, tiny_llama, "small", quant="INT8")
    said, end = await answer(harness, ask(PROMPTS[0], model="small"))
    await harness.unload("whole")
    await harness.unload("small")

    assert small.used_bytes < whole.used_bytes
    assert isinstance(end, Finished)
    assert said


async def test_a_model_that_is_not_built_like_llama_cannot_be_quantised(harness, tmp_path):
    with pytest.raises(UnsupportedArchitecture, match="cannot be quantised"):
        await load(harness, save_tiny("gpt2", tmp_path), "gpt2", quant="fp8")


async def test_what_is_guessed_changes_no_answer_and_is_counted(harness, tiny_llama):
    said = "one two one two one two one two "
    wanted, _ = await answer(harness, ask(said, max_tokens=60))
    async with running_harness(speculation="ngram", draft_tokens=3) as (guessing, _):
        await load(guessing, tiny_llama)
        text, finished = await answer(guessing, ask(said, max_tokens=60))
        async with asyncio.timeout(10):
            while not guessing.stats("tiny").drafted_tokens_total:
                await asyncio.sleep(0.05)
        stats = guessing.stats("tiny")

    assert text == wanted
    assert finished.usage.completion_tokens == 60
    assert stats.drafted_tokens_total >= stats.accepted_tokens_total
    assert harness.stats("tiny").drafted_tokens_total == 0
