"""Continuous batching: answers are what a model's own forward gives, whatever the schedule."""

from __future__ import annotations

import os
import random
from functools import partial

import pytest
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cortex.errors import InvalidRequest
from cortex.neuron.engine import probe
from cortex.neuron.engine.blocks import BLOCK_TOKENS
from cortex.neuron.engine.cache import Cache
from cortex.neuron.engine.jobs import Done, Lost
from cortex.neuron.engine.kernels import kernels_for
from cortex.neuron.engine.modules import Modules, record
from cortex.neuron.engine.stack import Stack
from cortex.neuron.engine.turns import Turns
from tests.neuron.engine.engines import (
    DEVICE,
    FAMILIES,
    STACKS,
    Oracle,
    ask,
    check_schedule,
    engine_of,
    greedy,
    model_of,
    prompts,
    run,
)

SCHEDULES = int(os.environ.get("CORTEX_TEST_SCHEDULES", "30"))
pytestmark = pytest.mark.usefixtures("one_thread", "without_gradients")


def penalised(module, prompt, count, penalty):
    """Return what transformers says greedily with a repetition penalty, without any cache."""
    module.set_attn_implementation("eager")
    apply = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    ids = torch.tensor([prompt], device=DEVICE)
    for _ in range(count):
        scores = apply(ids, module(input_ids=ids, use_cache=False).logits[:, -1])
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=-1)
    return ids[0, len(prompt) :].tolist()


@pytest.fixture(scope="module")
def llama():
    return model_of("llama")


@pytest.mark.parametrize(
    ("family", "tier"),
    [*((family, "modules") for family in FAMILIES), *((family, "fused") for family in STACKS)],
)
@pytest.mark.timeout(90)
def test_answers_are_those_of_the_models_own_forward(family, tier):
    module = model_of(family)
    asked = prompts(5)
    wanted = {str(n): greedy(module, prompt, 8 + n) for n, prompt in enumerate(asked)}
    body = Stack(module, kernels_for(DEVICE)) if tier == "fused" else None
    engine = engine_of(module, body=body)

    said, ends = run(engine, [ask(str(n), prompt, 8 + n) for n, prompt in enumerate(asked)])

    assert said == wanted
    assert {end.reason for end in ends.values()} == {"length"}
    engine.scheduler.check()


ASKED = prompts(9, shared=50)
ARRIVALS = st.tuples(
    st.integers(0, len(ASKED) - 1),  # which prompt
    st.integers(1, 20),  # tokens of its answer
    st.integers(0, 12),  # steps before it comes
    st.none() | st.integers(0, 20),  # steps before its client leaves
)


@pytest.fixture(scope="module", params=["llama", "qwen3_5_text"])
def model(request):
    return model_of(request.param)


@pytest.fixture(scope="module")
def wanted(model):
    with torch.inference_mode():
        return [greedy(model, prompt, 20) for prompt in ASKED]


@given(
    arrivals=st.lists(ARRIVALS, min_size=1, max_size=12),
    blocks=st.integers(16, 60),
    budget_tokens=st.integers(5, 64),
    rows=st.integers(1, 16),
    runs_ahead=st.booleans(),
    snapshots=st.integers(1, 20),
    tier=st.sampled_from(["modules", "fused"]),
    guesses=st.none() | st.integers(0, 1 << 20),
)
@example(  # the last piece of the prompt is one token
    arrivals=[(3, 3, 0, None)], blocks=16, budget_tokens=5, rows=1, runs_ahead=True, snapshots=1,
    tier="fused", guesses=None,
)  # fmt: skip
@settings(max_examples=SCHEDULES)
@pytest.mark.timeout(120)
def test_no_schedule_changes_an_answer(model, wanted, arrivals, tier, guesses, **limits):
    body = Stack(model, kernels_for(DEVICE)) if tier == "fused" else None
    answers, made = list(zip(ASKED, wanted, strict=True)), random.Random(guesses)
    guesser = None if guesses is None else partial(Oracle, answers, made)
    engine = engine_of(model, body=body, guesser=guesser, **limits)
    check_schedule(engine, arrivals, ASKED, wanted, 12)


@pytest.mark.parametrize("runs_ahead", [False, True], ids=["in step", "ahead"])
@pytest.mark.parametrize("blocks", [200, 20])
@pytest.mark.timeout(90)
def test_a_repetition_penalty_is_transformers_own_whatever_the_schedule(llama, blocks, runs_ahead):
    asked = prompts(8, seed=2, shared=30)
    penalties = [1.0, 1.5, 1.2, 3.0, 1.0, 0.7, 1.1, 2.0]
    wanted = {
        str(n): penalised(llama, prompt, 25, penalty)
        for n, (prompt, penalty) in enumerate(zip(asked, penalties, strict=True))
    }
    engine = engine_of(llama, blocks=blocks, budget_tokens=48, runs_ahead=runs_ahead)

    said, _ = run(
        engine,
        [
            ask(str(n), prompt, 25, repetition_penalty=penalty)
            for n, (prompt, penalty) in enumerate(zip(asked, penalties, strict=True))
        ],
    )

    assert said == wanted
    assert bool(engine.scheduler.preemptions) == (blocks == 20)


@pytest.mark.parametrize("runs_ahead", [False, True], ids=["in step", "ahead"])
def test_an_end_token_ends_an_answer_and_is_no_part_of_it(llama, runs_ahead):
    (prompt,) = prompts(1)
    whole = greedy(llama, prompt, 12)
    end = whole[5]
    engine = engine_of(llama, runs_ahead=runs_ahead, end_tokens=[end])

    said, ends = run(engine, [ask("r", prompt, 12)])

    assert said["r"] == whole[: whole.index(end)]
    assert ends["r"].reason == "stop"
    assert ends["r"].completion_tokens == whole.index(end) + 1


def test_who_has_no_way_on_from_the_start_leaves_the_rows_of_others_alone(llama):
    class NoWay:
        def allowed(self):
            raise InvalidRequest("no way on")

    short, long = prompts(2)
    engine = engine_of(llama, rows=2)
    first, _ = run(
        engine,
        [ask("short", short, 2), ask("long", long, 12)],
        until=lambda said: len(said.get("short", ())) == 2,
    )
    engine.add(ask("none", [5, 6], 4), NoWay())
    said, ends = run(engine, losing=["none"])

    assert first["long"] + said["long"] == greedy(llama, long, 12)
    assert (ends["none"].message, ends["none"].code) == ("no way on", "invalid_value")
    engine.scheduler.check()


def test_an_end_token_may_be_one_like_any_other(llama):
    (prompt,) = prompts(1)
    whole = greedy(llama, prompt, 12)
    engine = engine_of(llama, end_tokens=[whole[5]])

    said, ends = run(engine, [ask("r", prompt, 12, ignore_eos=True)])

    assert said["r"] == whole
    assert ends["r"].reason == "length"


def test_a_prompt_that_begins_like_one_before_is_not_computed_again(llama):
    first, second = prompts(2, shared=100)
    engine = engine_of(llama)

    _, before = run(engine, [ask("first", first, 4)])
    said, ends = run(engine, [ask("second", second, 4)])

    assert before["first"].cached_tokens == 0
    assert ends["second"].cached_tokens == 100 // BLOCK_TOKENS * BLOCK_TOKENS
    assert said["second"] == greedy(llama, second, 4)


def test_the_same_seed_says_the_same_alone_and_among_others(llama):
    prompt, *others = prompts(21)
    one = ask("one", prompt, 15, temperature=1.0, seed=7)
    alone, _ = run(engine_of(llama), [one])
    among, _ = run(
        engine_of(llama, blocks=24, budget_tokens=30, runs_ahead=True),
        [*(ask(str(n), other, 15, temperature=1.0) for n, other in enumerate(others)), one],
    )

    assert among["one"] == alone["one"]
    assert len(set(alone["one"])) > 5


def test_sixty_four_at_once_in_a_cache_for_eight_all_finish_as_they_would_alone(llama):
    asked = prompts(64, seed=3)
    wanted = {str(n): greedy(llama, prompt, 6) for n, prompt in enumerate(asked)}
    engine = engine_of(llama, blocks=1 + 8 * 7, rows=64)

    said, ends = run(engine, [ask(str(n), prompt, 6) for n, prompt in enumerate(asked)])

    assert said == wanted
    assert len(ends) == 64
    engine.scheduler.check()


@pytest.mark.parametrize("runs_ahead", [False, True], ids=["in step", "ahead"])
@pytest.mark.timeout(120)
def test_whoever_leaves_takes_all_there_is_of_it_along(llama, runs_ahead):
    made = random.Random(5)
    engine = engine_of(llama, blocks=40, rows=8, runs_ahead=runs_ahead)
    free, open_ = engine.scheduler.blocks.free, set()
    for number in range(600):
        name = str(number)
        engine.add(ask(name, prompts(1, seed=number)[0], made.randrange(1, 12)))
        open_.add(name)
        if made.random() < 0.5:
            gone = made.choice(sorted(open_))
            event = engine.cancel(gone)
            assert event is None or event.reason == "cancelled"
        if made.random() < 0.7 or len(open_) > 20:
            _, ended = engine.step()
            open_ -= {event.id for event in ended}
        open_ &= set(engine.requests)

    run(engine)
    assert not engine.requests
    assert engine.scheduler.blocks.free == free
    assert not engine.scheduler.waiting
    assert not engine.scheduler.running
    engine.scheduler.check()


def test_memory_that_runs_out_costs_who_asked_for_most_of_it_and_nobody_else(llama, monkeypatch):
    engine = engine_of(llama, budget_tokens=512)
    short, long = prompts(1)[0], [5] * 300
    body, real = engine._runner._body, engine._runner._body.logits

    def logits(step, cache):
        if len(step.ids) > 200:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(step, cache)

    monkeypatch.setattr(body, "logits", logits)
    said, ends = run(engine, [ask("short", short, 5), ask("long", long, 5)], losing=["long"])

    assert isinstance(ends["long"], Lost)
    assert "too little memory" in ends["long"].message
    assert ends["long"].code == "insufficient_vram"
    assert isinstance(ends["short"], Done)
    assert said["short"] == greedy(llama, short, 5)
    engine.scheduler.check()


@pytest.mark.parametrize("runs_ahead", [False, True], ids=["in step", "ahead"])
def test_whom_memory_that_runs_out_did_not_cost_goes_on_from_where_it_was(
    llama, monkeypatch, runs_ahead
):
    penalties = dict(enumerate([1.0, 1.0, 1.5, 1.5]))
    jobs = [ask(str(n), prompts(1, n)[0], 16, repetition_penalty=p) for n, p in penalties.items()]
    wanted, _ = run(engine_of(llama), jobs)
    engine, steps = engine_of(llama, runs_ahead=runs_ahead), 0
    real = engine._runner.launch

    def launch(chunks):
        nonlocal steps
        steps += 1
        launched = real(chunks)
        if steps == 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return launched

    monkeypatch.setattr(engine._runner, "launch", launch)
    said, ends = run(engine, jobs, losing=["0", "1", "2", "3"])

    (gone,) = (name for name, event in ends.items() if isinstance(event, Lost))
    cut = said.pop(gone)
    assert cut == wanted.pop(gone)[: len(cut)]
    assert said == wanted
    engine.scheduler.check()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "insufficient_vram"),
        (MemoryError("no more"), "insufficient_vram"),
        (ValueError("a strange one"), "upstream_died"),
    ],
)
def test_what_broke_a_request_that_runs_by_itself_is_told_by_its_code(error, code):
    class Breaking:
        reason = None

        def step(self):
            raise error

    turns = Turns(lambda _job, _grammar: Breaking())
    turns.add(ask("one", [1], 1))

    (lost,) = turns.step()[1]

    assert (lost.id, lost.code) == ("one", code)
    assert str(error) in lost.message
    assert not turns.has_work


def test_a_body_that_is_wrong_is_not_used(llama):
    tried = probe.sequences(300, DEVICE)
    llama.set_attn_implementation("eager")
    wanted = probe.truth(llama, tried)
    cache = Cache(record(llama, tried[0]), probe.BLOCKS, torch.float32, DEVICE)
    right, _ = probe.prove(lambda: Modules(llama), cache, tried, wanted)
    assert right is not None

    class Wrong(Modules):
        def logits(self, step, cache):
            return super().logits(step, cache) * 1.01

    wrong, why = probe.prove(lambda: Wrong(llama), cache, tried, wanted)
    assert wrong is None
    assert "off by 1.0e-02" in why
